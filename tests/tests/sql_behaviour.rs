//! What the SQL bus does beside strangers, poolers and operators, on real databases: open transactions, a log that was
//! truncated, restored or replaced, a node that slept past retention, ten that install at once, and what an idle one costs.
// Measured times and costs are printed.
#![allow(clippy::print_stdout)]

#[path = "sql_behaviour/epoch.rs"]
mod epoch;
#[path = "sql_behaviour/foreign.rs"]
mod foreign;
#[path = "sql_behaviour/idle.rs"]
mod idle;
#[path = "sql_behaviour/install.rs"]
mod install;
#[path = "sql_behaviour/member.rs"]
mod member;
#[path = "sql_behaviour/pooler.rs"]
mod pooler;
#[path = "sql_behaviour/process.rs"]
mod process;
#[path = "sql_behaviour/resume.rs"]
mod resume;
#[path = "sql_behaviour/retention.rs"]
mod retention;
#[path = "sql_behaviour/sqlite_file.rs"]
mod sqlite_file;

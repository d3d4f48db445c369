//! Official clients in Node and Chromium, the servers they talk to, and what may stand between: all of them private
//! processes.

mod chromium;
mod nginx;
mod node;
mod program;
mod server;
mod two_servers;

pub use chromium::Chromium;
pub use nginx::Nginx;
pub use node::Script;
pub use program::{folder, required};
pub use server::{Server, port};
pub use two_servers::two_servers;

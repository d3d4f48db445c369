//! What the tests of this package share.

pub mod clients;
pub mod recording;
pub mod redis;
pub mod sql;
pub mod transcripts;
pub mod wiretap;

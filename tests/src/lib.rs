//! What the tests of this package share.

pub mod recording;
pub mod redis;
pub mod wiretap;

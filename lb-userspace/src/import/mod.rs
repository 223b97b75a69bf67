//! Configurations of other programs as Matapa's.

pub mod relayd;

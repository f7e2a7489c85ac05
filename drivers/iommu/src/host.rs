//! For the tests of back ends, on a host: what every one of them has to pass.

pub mod fail_nth;

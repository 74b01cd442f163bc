//! All tests in one binary: every further one would link burn again.

mod support;

mod model;

use support::golden;

//! All tests in one binary: every further one would link burn again.

mod support;

mod alone;
mod augment;
mod board;
mod cache;
mod chat;
mod cli;
mod compare;
mod cpu;
mod data;
mod decode;
mod demo;
mod device;
mod evaluation;
mod export;
mod full;
mod generate;
mod grade;
mod hub;
mod initial;
mod judge;
mod kinds;
mod llamafactory;
mod mirror;
mod model;
mod own_data;
mod page;
mod plan;
mod processor;
mod questions;
mod quickstart;
mod resume;
mod shapes;
mod split;
mod stats;
mod train;
mod validation;
mod variant;
mod video;

use support::golden;

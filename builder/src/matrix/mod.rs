//! The cells of a matrix: what can be combined, and what runs together. Pure functions only.

mod axes;
mod cell;
pub mod compat;
pub mod condition;

#[cfg(test)]
pub use self::cell::cell;
pub use self::{
    axes::{Axes, Cells, Refused, cells, combinations},
    cell::Cell,
};

//! One build, in order: specification, cells, inputs, plan, layers, images, layout, registry.

mod building;
mod class_data;
mod error;
mod extras;
mod fetching;
mod images;
mod inputs;
mod inventory;
mod locking;
mod options;
mod planning;
mod prepare;
mod prepared;
mod pushing;
mod repair;
mod requirements;
mod training;

pub use self::{
    building::run,
    error::BuildError,
    locking::{Change, lock},
    options::Options,
    planning::plan,
};

//! Files of an image that its own programs make during a build: compiled Python files ([`bytecode`]) and
//! the archive of class data of Java ([`classes`]).
//!
//! What they make depends on nothing but their inputs: the digest of all inputs is its key in the cache and a part of
//! its name in a lock. The lock freezes it by digest, so that a program that makes something else next time is noticed.

pub mod bytecode;
pub mod class_list;
pub mod classes;

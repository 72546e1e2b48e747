//! The state of one simulated node.

use std::collections::{HashMap, HashSet};

use hearth_agent::peers::{layout::SLOTS, pace::Paces, plan::Window};

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) window: Window,
    pub(crate) takes: bool,
    pub(crate) dead: bool,
    pub(crate) begun: u64,
    pub(crate) done: Option<u64>,
    pub(crate) slow: u64,
    pub(crate) leaf: bool,
    pub(crate) asks: u32,
    pub(crate) up_free: u64,
    pub(crate) down_free: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Where in the route the pieces that are asked for stand.
    pub(crate) asked: HashMap<u64, usize>,
    pub(crate) paces: Paces<u32>,
    /// Peers that did not answer: not asked again.
    pub(crate) gone: HashSet<u32>,
    /// Pieces that are being read upstream.
    pub(crate) reading: HashSet<u64>,
    /// When the connection of each slot is free again.
    pub(crate) upstream_free: Vec<u64>,
}

impl Node {
    /// One that has begun nothing.
    pub(crate) fn new(window: Window) -> Self {
        Self {
            window,
            takes: true,
            dead: false,
            begun: 0,
            done: None,
            slow: 1,
            leaf: false,
            asks: 0,
            up_free: 0,
            down_free: 0,
            sent: 0,
            received: 0,
            asked: HashMap::new(),
            paces: Paces::default(),
            gone: HashSet::new(),
            reading: HashSet::new(),
            upstream_free: (0..SLOTS).map(|_| 0).collect(),
        }
    }
}

//! One blob, N nodes, in simulated time. Ranking, layout, piece order, routes and answers are the agent's own code;
//! links, deaths and upstream are modelled:
//!
//! * a link is full duplex and carries one piece at a time each way, first come first served;
//! * upstream gives every connection the same rate; a fetcher reads the segments of its slot one after the other;
//! * a request takes one latency; a peer that is dead when it is asked costs the agent's limit for a connection, one
//!   that dies while it holds a request the limit for an answer; either is not asked again;
//! * a node whose link is much slower than others' knows it after two pieces, and is a leaf from then on.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use hearth_agent::peers::{
    CONNECT, HEADER, HOLD,
    layout::{Layout, SLOTS},
    plan::{Answer, QUEUE, ResponderState, Role, Target, Window, answer, targets, targets_of_leaf},
    rank::{Ranking, Subject},
};

use crate::{
    node::Node,
    world::{Outcome, Rule, World},
};

/// Requests that a node has under way.
const ASKS: u32 = 16;
/// The same for a leaf.
const LEAF_ASKS: u32 = 2;
/// From so many times slower on, a node calls itself slow (the agent's share of the median is 0.3).
const SLOW: u64 = 4;
/// Pieces that a slow node has received before it knows.
const LEARNT: u64 = 2;
/// Pause of a leaf that nobody gives a piece, in nanoseconds.
const PAUSE: u64 = 200_000_000;
/// One way between two nodes, in nanoseconds.
const LATENCY: u64 = 500_000;
/// What a peer costs that is dead when it is asked, in nanoseconds.
const UNREACHABLE: u64 = nanoseconds(CONNECT);
/// What one costs that dies while it holds a request, in nanoseconds.
const SILENT: u64 = nanoseconds(HOLD) + nanoseconds(HEADER);

const fn nanoseconds(time: Duration) -> u64 {
    time.as_secs() * 1_000_000_000 + time.subsec_nanos() as u64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Start(u32),
    Die(u32),
    /// `from`, `to`, piece, place in the route of `from`, and whether the tree ends there or is left there.
    Request(u32, u32, u64, usize, As),
    /// `from` (or itself when it came from upstream), `to`, piece, nanoseconds in which it came.
    Arrive(u32, u32, u64, u64),
    /// Nobody answered: node, piece, place in its route.
    GiveUp(u32, u64, usize),
    /// A leaf looks for a piece once more.
    Retry(u32, u64),
}

/// [`Role`] with an order, for the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum As {
    Parent,
    Root,
    Source,
}

impl From<Role> for As {
    fn from(role: Role) -> Self {
        match role {
            Role::Parent => Self::Parent,
            Role::Root => Self::Root,
            Role::Source => Self::Source,
        }
    }
}

impl From<As> for Role {
    fn from(role: As) -> Self {
        match role {
            As::Parent => Self::Parent,
            As::Root => Self::Root,
            As::Source => Self::Source,
        }
    }
}

pub(crate) struct Simulation {
    world: World,
    layout: Layout,
    ranking: Ranking,
    subject: Subject,
    fetchers: Vec<Vec<u32>>,
    names: Vec<String>,
    nodes: Vec<Node>,
    waiting: HashMap<(u32, u64), Vec<u32>>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    tick: u64,
    random: u64,
    read: u64,
    /// Bytes that came into a zone from another.
    crossed: HashMap<&'static str, u64>,
}

impl Simulation {
    pub(crate) fn run(world: World) -> Outcome {
        let mut simulation = Self::new(world);
        simulation.begin();
        while let Some(Reverse((now, _, event))) = simulation.events.pop() {
            simulation.apply(now, event);
        }
        simulation.outcome()
    }

    fn new(world: World) -> Self {
        let layout = Layout::new(world.size);
        let names: Vec<_> = (0..world.nodes).map(|at| format!("node-{at:06}")).collect();
        let ranking = Ranking::new((0..).zip(&names).map(|(at, name)| (name.as_str(), world.zone(at))));
        let subject = Subject::of(&format!("sha256:{:064x}", world.seed));
        let fetchers = (0..SLOTS).map(|slot| ranking.fetchers(&subject, slot, 8)).collect();
        let seed = |at: u32| world.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(at) << 17);
        let node = |at: u32| Node::new(Window::new(&layout, seed(at)));
        let nodes = (0..world.nodes).map(node).collect();
        let random = world.seed.wrapping_add(1) | 1;
        Self {
            world,
            layout,
            ranking,
            subject,
            fetchers,
            names,
            nodes,
            waiting: HashMap::new(),
            events: BinaryHeap::new(),
            tick: 0,
            random,
            read: 0,
            crossed: HashMap::new(),
        }
    }

    fn dice(&mut self) -> f64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        #[expect(clippy::cast_precision_loss, reason = "dice")]
        let dice = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
        dice
    }

    fn at(&mut self, when: u64, event: Event) {
        self.tick += 1;
        self.events.push(Reverse((when, self.tick, event)));
    }

    fn time(bytes: u64, rate: u64) -> u64 {
        bytes * 1_000 / (rate / 1_000_000).max(1)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "dice"
    )]
    fn begin(&mut self) {
        let bound = Self::time(self.world.size, self.world.link);
        let slower = self.world.slower;
        for at in 0..self.world.nodes {
            let takes = at == 0 || self.dice() < self.world.taking;
            let slow = at != 0 && self.dice() < self.world.slow;
            let begun = (self.dice() * self.world.spread as f64) as u64;
            let dies = at != 0 && self.dice() < self.world.lost;
            // Thrown in any case: other throws stay the same.
            let at_random = self.dice();
            let along = if self.world.lost_at_once { 0.5 } else { at_random };
            let death = begun + (along * bound as f64) as u64;
            let node = &mut self.nodes[at as usize];
            node.takes = takes;
            node.slow = if slow { slower } else { 1 };
            node.begun = begun;
            if takes {
                self.at(begun, Event::Start(at));
            }
            if dies {
                self.at(death, Event::Die(at));
            }
        }
    }

    fn apply(&mut self, now: u64, event: Event) {
        match event {
            Event::Start(me) => {
                for slot in 0..SLOTS {
                    if self.fetchers[usize::try_from(slot).unwrap_or(0)].first() == Some(&me) {
                        self.read_slot(now, me, slot);
                    }
                }
                self.pump(now, me);
            }
            Event::Die(me) => self.die(now, me),
            Event::Request(from, to, piece, place, role) => {
                self.request(now, (from, to), piece, place, role.into());
            }
            Event::Arrive(from, to, piece, taken) => self.arrive(now, (from, to), piece, taken),
            Event::Retry(me, piece) => {
                let node = &mut self.nodes[me as usize];
                node.gone.clear();
                if !node.dead && !node.window.has(piece) {
                    self.ask(now, me, piece, 0);
                }
            }
            Event::GiveUp(me, piece, place) => {
                let node = &self.nodes[me as usize];
                if !node.dead && !node.window.has(piece) && node.asked.get(&piece) == Some(&place) {
                    self.note_gone(me, piece, place);
                    self.ask(now, me, piece, place + 1);
                }
            }
        }
    }

    /// Those who wait for it notice after a while.
    fn die(&mut self, now: u64, me: u32) {
        self.nodes[me as usize].dead = true;
        self.send_away(now + SILENT, me);
    }

    /// It reads nothing for others any more, and sends those who wait for it to the next one when they ask again.
    fn become_leaf(&mut self, now: u64, me: u32) {
        let node = &mut self.nodes[me as usize];
        node.leaf = true;
        for piece in std::mem::take(&mut node.reading) {
            node.window.give_back(piece);
        }
        self.send_away(now + nanoseconds(HOLD) / 2, me);
    }

    fn send_away(&mut self, when: u64, me: u32) {
        let mut held: Vec<_> = self.waiting.keys().filter(|(at, _)| *at == me).copied().collect();
        held.sort_unstable();
        for key in held {
            for waiting in self.waiting.remove(&key).unwrap_or_default() {
                if let Some(place) = self.nodes[waiting as usize].asked.get(&key.1).copied() {
                    self.at(when, Event::GiveUp(waiting, key.1, place));
                }
            }
        }
    }

    /// Asks for more while there is room.
    fn pump(&mut self, now: u64, me: u32) {
        loop {
            let node = &mut self.nodes[me as usize];
            let most = if node.leaf { LEAF_ASKS } else { ASKS };
            if node.dead || !node.takes || node.asks >= most || now < node.begun {
                return;
            }
            let Some(piece) = node.window.take() else { return };
            if !node.reading.contains(&piece) {
                node.asks += 1;
                self.ask(now, me, piece, 0);
            }
        }
    }

    /// Where a node looks for a piece, in this order.
    fn route(&self, me: u32, piece: u64) -> Vec<Target> {
        let slot = usize::try_from(self.layout.slot(piece)).unwrap_or(0);
        let (part, fetchers) = (self.layout.part(piece), &self.fetchers[slot]);
        if !self.nodes[me as usize].leaf {
            return targets(&self.ranking, &self.subject, part, me, fetchers);
        }
        let mut route = targets_of_leaf(&self.ranking, &self.subject, part, me, fetchers);
        route.retain(|target| *target != Target::Upstream);
        route
    }

    fn ask(&mut self, now: u64, me: u32, piece: u64, place: usize) {
        let route = self.route(me, piece);
        // The plain rule leaves the tree out: everybody goes to the owner.
        let skipped = match self.world.rule {
            Rule::Forest => 0,
            Rule::Owner => {
                route.iter().position(|target| !matches!(target, Target::Peer(_, Role::Parent))).unwrap_or(0)
            }
        };
        let node = &mut self.nodes[me as usize];
        let (gone, paces) = (&node.gone, &mut node.paces);
        let mut skips = |place: &usize| match route.get(skipped + place) {
            Some(Target::Peer(peer, role)) => {
                gone.contains(peer) || (*role == Role::Parent && paces.skips(peer))
            }
            _ => false,
        };
        let next = (place..route.len()).find(|place| !skips(place));
        let leaf = self.nodes[me as usize].leaf;
        let place = next.unwrap_or(if leaf { route.len() } else { place });
        self.nodes[me as usize].asked.insert(piece, place);
        match route.get(skipped + place) {
            Some(Target::Peer(peer, role)) => {
                self.at(now + LATENCY, Event::Request(me, *peer, piece, place, (*role).into()));
            }
            None if leaf => self.at(now + PAUSE, Event::Retry(me, piece)),
            Some(Target::Upstream) | None => self.read_piece(now, me, piece),
        }
    }

    /// Whoever was asked last and is dead is remembered as such.
    fn note_gone(&mut self, me: u32, piece: u64, place: usize) {
        let route = self.route(me, piece);
        if let Some(Target::Peer(peer, _)) = route.get(place)
            && self.nodes[*peer as usize].dead
        {
            self.nodes[me as usize].gone.insert(*peer);
        }
    }

    fn request(&mut self, now: u64, (from, to): (u32, u32), piece: u64, place: usize, role: Role) {
        if self.nodes[to as usize].dead {
            self.at(now + UNREACHABLE, Event::GiveUp(from, piece, place));
            return;
        }
        let part = self.layout.part(piece);
        let height = |at: u32| self.subject.height(part, &self.names[at as usize], self.world.zone(at));
        let higher = height(to) > height(from);
        let node = &self.nodes[to as usize];
        let fetching = (node.takes && now >= node.begun) || node.asked.contains_key(&piece);
        let span = Self::time(self.layout.piece(), self.world.link) * node.slow;
        let queue = node.up_free.saturating_sub(now).div_ceil(span);
        let loaded = queue >= QUEUE as u64;
        let has = node.window.has(piece);
        let state = ResponderState {
            has,
            fetching,
            higher,
            relays: true,
            full: false,
            loaded,
            slow: node.leaf && !node.window.is_complete(),
        };
        let slot = self.layout.slot(piece);
        match answer(role, &state) {
            Answer::Send => self.send(now, to, from, piece),
            Answer::Wait | Answer::Relay => {
                self.waiting.entry((to, piece)).or_default().push(from);
                let node = &mut self.nodes[to as usize];
                if node.window.ask(piece) && !node.reading.contains(&piece) {
                    node.asks += 1;
                    self.ask(now, to, piece, 0);
                }
            }
            Answer::Read => {
                self.waiting.entry((to, piece)).or_default().push(from);
                if self.fetchers[usize::try_from(slot).unwrap_or(0)].first() == Some(&to) {
                    self.read_slot(now, to, slot);
                }
                self.read_piece(now, to, piece);
            }
            Answer::NoPart | Answer::Busy => self.at(now + LATENCY, Event::GiveUp(from, piece, place)),
        }
    }

    /// One connection for all segments of a slot, one after the other.
    fn read_slot(&mut self, now: u64, me: u32, slot: u64) {
        for piece in 0..self.layout.pieces() {
            if self.layout.slot(piece) == slot {
                self.read_piece(now, me, piece);
            }
        }
    }

    fn read_piece(&mut self, now: u64, me: u32, piece: u64) {
        let bytes = self.layout.bytes(piece);
        let length = bytes.end - bytes.start;
        let own = Self::time(length, self.world.link) * self.nodes[me as usize].slow;
        let span = Self::time(length, self.world.connection).max(own);
        let slot = usize::try_from(self.layout.slot(piece)).unwrap_or(0);
        let node = &mut self.nodes[me as usize];
        if node.window.has(piece) || !node.reading.insert(piece) {
            return;
        }
        let free = &mut node.upstream_free[slot];
        *free = now.max(*free) + span;
        let when = *free;
        self.at(when, Event::Arrive(me, me, piece, span));
    }

    fn send(&mut self, now: u64, from: u32, to: u32, piece: u64) {
        let bytes = self.layout.bytes(piece);
        let span = Self::time(bytes.end - bytes.start, self.world.link);
        let source = &mut self.nodes[from as usize];
        let begin = now.max(source.up_free);
        source.up_free = begin + span * source.slow;
        source.sent += bytes.end - bytes.start;
        let (sent, source_slow) = (source.up_free, source.slow);
        let target = &mut self.nodes[to as usize];
        let taken = span * source_slow.max(target.slow);
        target.down_free = (begin.max(target.down_free) + span * target.slow).max(sent);
        let when = target.down_free + LATENCY;
        self.at(when, Event::Arrive(from, to, piece, taken));
    }

    fn arrive(&mut self, now: u64, (from, to): (u32, u32), piece: u64, taken: u64) {
        if self.nodes[to as usize].dead {
            return;
        }
        if self.nodes[from as usize].dead {
            // Cut off on the way.
            let place = self.nodes[to as usize].asked.get(&piece).copied().unwrap_or(0);
            self.at(now, Event::GiveUp(to, piece, place));
            return;
        }
        let bytes = self.layout.bytes(piece);
        let length = bytes.end - bytes.start;
        let node = &mut self.nodes[to as usize];
        if from == to {
            // Aborted when the node became a leaf.
            if !node.reading.remove(&piece) {
                return;
            }
            self.read += length;
        }
        if !node.window.arrived(piece) {
            return;
        }
        node.received += length;
        if from != to {
            node.paces.note(from, length, Duration::from_nanos(taken));
        }
        let (zone, other) = (self.world.zone(to), self.world.zone(from));
        if zone != other {
            *self.crossed.entry(zone).or_default() += length;
        }
        if node.asked.remove(&piece).is_some() {
            node.asks = node.asks.saturating_sub(1);
        }
        if node.takes && node.window.is_complete() {
            node.done = Some(now);
        }
        let learnt = node.slow >= SLOW && !node.leaf && node.received >= LEARNT * self.layout.piece();
        if learnt {
            self.become_leaf(now, to);
        }
        for waiting in self.waiting.remove(&(to, piece)).unwrap_or_default() {
            self.send(now, to, waiting, piece);
        }
        self.pump(now, to);
    }

    #[expect(clippy::cast_precision_loss, reason = "figures")]
    fn outcome(&self) -> Outcome {
        let size = self.world.size as f64;
        let bound = Self::time(self.world.size, self.world.link.min(self.world.connection * SLOTS)) as f64;
        let living = || self.nodes.iter().filter(|node| node.takes && !node.dead);
        assert!(living().all(|node| node.done.is_some()), "a living node never finished");
        let fast = living().filter(|node| node.slow == 1);
        let mut times: Vec<_> =
            fast.filter_map(|node| Some((node.done? - node.begun) as f64 / bound)).collect();
        times.sort_by(f64::total_cmp);
        let idle: Vec<_> =
            self.nodes.iter().filter(|node| !node.takes).map(|node| node.received as f64 / size).collect();
        Outcome {
            last_over_bound: times.last().copied().unwrap_or(0.0),
            median_over_bound: times.get(times.len() / 2).copied().unwrap_or(0.0),
            upstream: self.read as f64 / size,
            max_upload: self.nodes.iter().map(|node| node.sent).max().unwrap_or(0) as f64 / size,
            crossings: self.crossed.values().max().map_or(0.0, |most| *most as f64 / size),
            bystander: if idle.is_empty() { 0.0 } else { idle.iter().sum::<f64>() / idle.len() as f64 },
        }
    }
}

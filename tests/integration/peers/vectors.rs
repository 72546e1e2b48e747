//! The ranking must be equal on every platform and in every version: agents of two versions serve one cluster during
//! an upgrade. These values were computed by an independent program from the formulas in `agent/src/peers/rank.rs`.

use hearth_agent::peers::rank::{Part, Ranking, Subject, key, weight};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn keys_and_weights_are_what_they_always_were() {
    for (kind, text, expected) in KEYS {
        assert_eq!(key(kind, text), *expected, "{kind} {text}");
    }
    for (index, peer, expected) in WEIGHTS {
        assert_eq!(weight(key("piece", DIGEST), *index, key("member", peer)), *expected, "{index} {peer}");
    }
}

#[test]
fn the_tree_of_a_piece_is_what_it_always_was() {
    let names: Vec<_> = (0..16).map(|at| format!("node-{at:02}")).collect();
    let ranking = Ranking::new(names.iter().map(|name| (name.as_str(), "")));
    let subject = Subject::of(DIGEST);
    for (piece, me, expected) in PATHS {
        assert_eq!(
            ranking.ancestors(&subject, Part { piece: *piece, slot: 0 }, *me),
            *expected,
            "piece {piece} of node {me}"
        );
    }
    for (slot, expected) in FETCHERS {
        assert_eq!(ranking.fetchers(&subject, *slot, 3), *expected, "slot {slot}");
    }
}

#[test]
fn the_tree_over_three_zones_is_what_it_always_was() {
    let names: Vec<_> = (0..16).map(|at| format!("node-{at:02}")).collect();
    let zones = ["a", "b", "c"].into_iter().cycle();
    let ranking = Ranking::new(names.iter().map(String::as_str).zip(zones));
    let subject = Subject::of(DIGEST);
    for (piece, slot, me, expected) in ZONED_PATHS {
        let part = Part { piece: *piece, slot: *slot };
        assert_eq!(ranking.ancestors(&subject, part, *me), *expected, "piece {piece} of node {me}");
    }
    for (slot, expected) in ZONED_FETCHERS {
        assert_eq!(ranking.fetchers(&subject, *slot, 3), *expected, "slot {slot}");
    }
}

const KEYS: &[(&str, &str, u64)] = &[
    ("member", "node-00", 0xcc74_50fd_d0a8_b7ee),
    ("member", "ä", 0x37ad_3ad7_0623_308a),
    ("piece", DIGEST, 0xe4a4_ed0d_0847_8c94),
    ("stripe", DIGEST, 0xd250_c82b_c65e_d640),
    ("zone", "", 0x7568_d168_f866_d781),
    ("zone", "eu-1a", 0xd73c_4e37_4e38_37a1),
];

const WEIGHTS: &[(u64, &str, u64)] = &[
    (0, "node-00", 0x677e_6d15_11cd_719c),
    (0, "node-01", 0x48ff_ddad_e91d_1745),
    (1, "node-00", 0x2b1e_c2e0_dd40_a79e),
    (255, "node-15", 0x5877_e35f_63bd_0602),
    (u64::MAX, "node-00", 0x36fa_c3a9_9a29_f926),
];

const PATHS: &[(u64, u32, &[u32])] =
    &[(0, 0, &[10, 9, 13]), (0, 7, &[13]), (1, 7, &[12]), (2, 15, &[0, 5]), (1000, 3, &[15, 10])];

const FETCHERS: &[(u64, &[u32])] = &[(0, &[13, 1, 3]), (1, &[5, 12, 9]), (7, &[12, 5, 9])];

const ZONED_PATHS: &[(u64, u64, u32, &[u32])] = &[
    (0, 0, 0, &[3, 9, 2]),
    (0, 0, 7, &[13, 2]),
    (17, 1, 7, &[13, 3]),
    (40, 2, 15, &[4]),
    (127, 7, 3, &[0, 4]),
];

const ZONED_FETCHERS: &[(u64, &[u32])] = &[(0, &[11, 13, 1]), (1, &[12, 5, 9]), (7, &[1, 12, 5])];

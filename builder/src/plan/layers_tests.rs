use super::*;
use crate::{cache::Content, digest::Digest};

const MB: u64 = 1 << 20;

fn file(content: &str, size: u64) -> Entry {
    Entry::file(Content { digest: Digest::of(content.as_bytes()), size }, 0o644)
}

fn files_of(spark: Tree, hearth: Tree) -> Files {
    let mut parts = BTreeMap::from([(LayerName::Hearth, hearth)]);
    for (path, entry) in spark {
        parts.entry(LayerName::of_spark(&path)).or_default().insert(path, entry);
    }
    Files { base_layers: 1, parts }
}

/// An image with JARs (name, content, size) and an entry point.
fn image(jars: &[(&str, &str, u64)]) -> Files {
    let mut spark = Tree::new();
    for directory in ["opt/spark", "opt/spark/jars"] {
        spark.insert(ImagePath::known(directory), Entry::directory(0o755));
    }
    for (name, content, size) in jars {
        spark.insert(ImagePath::new(&format!("opt/spark/jars/{name}")).unwrap(), file(content, *size));
    }
    let hearth = Tree::from([
        (ImagePath::known("opt/spark"), Entry::directory(0o755)),
        (ImagePath::known("opt/spark/conf"), Entry::directory(0o755)),
        (ImagePath::known("opt/entrypoint.sh"), file("entry", 100)),
    ]);
    files_of(spark, hearth)
}

/// What an image gets when its layers are stacked.
fn stacked(planned: &[Planned], image: usize) -> Tree {
    let own = planned.iter().filter(|layer| layer.images.contains(&image));
    own.flat_map(|layer| layer.tree.clone()).collect()
}

fn shape(planned: &[Planned]) -> Vec<(LayerName, Vec<usize>, u64)> {
    planned.iter().map(|layer| (layer.name, layer.images.clone(), tree::bytes(&layer.tree) / MB)).collect()
}

#[test]
fn what_images_share_is_one_layer_and_lies_lowest() {
    let images = [
        image(&[("a", "same", 100 * MB), ("spark", "3.5.8", 50 * MB), ("tiny", "x", MB)]),
        image(&[("a", "same", 100 * MB), ("spark", "3.5.9", 50 * MB), ("tiny", "x", MB)]),
    ];
    let planned = layers(&images, &LockedPlan::default(), Limits::default());
    let expected = [
        (LayerName::SparkJars, vec![0, 1], 101),
        (LayerName::SparkJars, vec![0], 50),
        (LayerName::SparkJars, vec![1], 50),
        (LayerName::Hearth, vec![0, 1], 0),
    ];
    assert_eq!(shape(&planned), expected);
}

#[test]
fn small_groups_of_some_images_are_copied() {
    let small = |own: &'static str, shared: &'static str| {
        image(&[("base", "all", 20 * MB), ("own", own, 30 * MB), ("small", shared, 3 * MB)])
    };
    let images = [small("0", "x"), small("1", "x"), small("2", "y")];
    let planned = layers(&images, &LockedPlan::default(), Limits::default());
    let expected = [
        (LayerName::SparkJars, vec![0, 1, 2], 20),
        (LayerName::SparkJars, vec![0], 33),
        (LayerName::SparkJars, vec![1], 33),
        (LayerName::SparkJars, vec![2], 33),
        (LayerName::Hearth, vec![0, 1, 2], 0),
    ];
    assert_eq!(shape(&planned), expected);
}

#[test]
fn giant_groups_are_cut_evenly() {
    let mut files = image(&[]);
    let packages = (0..30).map(|number| format!("opt/python-packages/big/{number:02}"));
    let packages = packages.map(|name| (ImagePath::new(&name).unwrap(), file(&name, 20 * MB))).collect();
    files.parts.insert(LayerName::Wheels, packages);
    let planned = layers(&[files], &LockedPlan::default(), Limits::default());
    let sizes: Vec<u64> = shape(&planned).iter().map(|(_, _, size)| *size).collect();
    assert_eq!(sizes, [200, 200, 200, 0]);
    assert_eq!(planned[1].label(), "Python packages (2/3)");
    assert_eq!(planned[3].label(), "entry point, user and directories");
}

#[test]
fn jars_are_divided_only_where_the_layers_suffice() {
    let names: Vec<String> = (0..30).map(|number| format!("{number:02}.jar")).collect();
    let jars: Vec<(&str, &str, u64)> =
        names.iter().map(|name| (name.as_str(), name.as_str(), 10 * MB)).collect();
    let count = |layers: usize| {
        let limits = Limits { layers, ..Limits::default() };
        self::layers(&[image(&jars)], &LockedPlan::default(), limits).len()
    };
    assert_eq!(count(4), 3, "two halves and the entry point");
    assert!(count(24) > 6, "{}", count(24));
}

#[test]
fn no_image_gets_more_layers_than_allowed() {
    // Every pair of eight images shares a file of its own: 28 groups, 7 in each image.
    let images: Vec<Files> = (0..8usize)
        .map(|image_number| {
            let names: Vec<String> = (0..8usize)
                .filter(|other| *other != image_number)
                .map(|other| format!("{}-{}", image_number.min(other), image_number.max(other)))
                .collect();
            let jars: Vec<(&str, &str, u64)> =
                names.iter().map(|name| (name.as_str(), name.as_str(), 10 * MB)).collect();
            image(&jars)
        })
        .collect();
    let limits = Limits { layers: 6, ..Limits::default() };
    let planned = layers(&images, &LockedPlan::default(), limits);
    for (number, files) in images.iter().enumerate() {
        let own = planned.iter().filter(|layer| layer.images.contains(&number)).count();
        assert!(own + files.base_layers <= 6, "image {number} has {own} layers over its base");
    }
}

/// Random numbers below a bound; the same seed gives the same sequence.
fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

/// An image with random files, whose sizes lie around every limit.
fn random_image(next: &mut impl FnMut(u64) -> u64) -> Files {
    let mut files = image(&[]);
    let mut spark = Tree::new();
    for number in 0..12 {
        let (version, size) = (next(3), [0, 1, 3, 5, 90, 300][usize::try_from(next(6)).unwrap()]);
        if next(4) > 0 {
            let directory = ["jars", "bin"][number % 2];
            let path = ImagePath::new(&format!("opt/spark/{directory}/{number}")).unwrap();
            spark.insert(path, file(&format!("{number} {version} {size}"), size * MB));
        }
    }
    // Some images have a directory with another mode than the others.
    let mode = if next(3) == 0 { 0o700 } else { 0o755 };
    spark.insert(ImagePath::known("opt/spark"), Entry::directory(mode));
    spark.insert(ImagePath::known("opt/spark/bin"), Entry::directory(0o755));
    spark.insert(ImagePath::known("opt/spark/jars"), Entry::directory(0o755));
    let mut hearth = files.parts.remove(&LayerName::Hearth).unwrap();
    hearth.insert(ImagePath::known("opt/spark"), Entry::directory(mode));
    files_of(spark, hearth)
}

/// One to five random images.
fn random_matrix(next: &mut impl FnMut(u64) -> u64) -> Vec<Files> {
    (0..=next(5)).map(|_| random_image(next)).collect()
}

fn assert_complete(planned: &[Planned], images: &[Files], context: &str) {
    for (number, files) in images.iter().enumerate() {
        let expected: Tree = files.entries().map(|(_, path, entry)| (path.clone(), entry.clone())).collect();
        assert_eq!(stacked(planned, number), expected, "image {number} of {}: {context}", images.len());
    }
    assert!(planned.iter().all(|layer| !layer.tree.is_empty()), "{context}");
}

#[test]
fn every_image_gets_exactly_its_files() {
    let mut next = dice(7);
    for round in 0..300 {
        let images = random_matrix(&mut next);
        let planned = layers(&images, &LockedPlan::default(), Limits { layers: 8, ..Limits::default() });
        assert_complete(&planned, &images, &format!("round {round}"));
    }
}

#[test]
fn a_plan_under_its_own_lock_is_the_same_plan() {
    for seed in 0..150 {
        let mut next = dice(seed);
        let limits = Limits { layers: [8, 24][usize::try_from(next(2)).unwrap()], ..Limits::default() };
        let mut images = random_matrix(&mut next);
        let mut planned = layers(&images, &LockedPlan::default(), limits);
        // A lock is made, the matrix changes, the lock is made again; each lock has to be a fixed point.
        for change in 0..4 {
            let lock = LockedPlan::of(&planned, images.iter());
            assert_eq!(layers(&images, &lock, limits), planned, "seed {seed}, change {change}");
            match next(3) {
                0 if images.len() > 1 => drop(images.remove(0)),
                1 => images[0] = random_image(&mut next),
                _ => images.insert(0, random_image(&mut next)),
            }
            planned = layers(&images, &lock, limits);
            assert_complete(&planned, &images, &format!("seed {seed}, change {change}"));
        }
    }
}

#[test]
fn a_lock_keeps_layers_that_hold_copies_of_small_files() {
    // The layer that only has x would fit the second image as well, whose copy of x lies in its layer with y.
    let with = |names: &[&str]| {
        let mut files = image(&[]);
        let place = |name: &&str| ImagePath::new(&format!("opt/{name}")).unwrap();
        let own = names.iter().map(|name| (place(name), file(name, 10))).collect();
        files.parts.insert(LayerName::Files, own);
        files
    };
    let images = [with(&["x"]), with(&["x", "y"]), with(&[])];
    let planned = layers(&images, &LockedPlan::default(), Limits::default());
    let lock = LockedPlan::of(&planned, images.iter());
    assert_eq!(layers(&images, &lock, Limits::default()), planned);
}

fn shared_and_own(version: &'static str) -> Files {
    image(&[
        ("a", "same", 100 * MB),
        ("b", "also same", 60 * MB),
        ("spark", version, 50 * MB),
        ("tiny", "x", MB),
    ])
}

#[test]
fn an_added_image_leaves_the_locked_layers_of_the_others_alone() {
    let old = [shared_and_own("3.5.8"), shared_and_own("3.5.9")];
    let before = layers(&old, &LockedPlan::default(), Limits::default());
    let lock = LockedPlan::of(&before, old.iter());
    assert_eq!(layers(&old, &lock, Limits::default()), before, "a lock changes nothing by itself");

    // Without the lock this image splits the shared layer: it has only one of its two JARs.
    let newcomer = image(&[("a", "same", 100 * MB), ("b", "other", 60 * MB), ("spark", "4.0.0", 50 * MB)]);
    let new = [newcomer, old[0].clone(), old[1].clone()];
    let after = layers(&new, &lock, Limits::default());
    for (number, files) in new.iter().enumerate() {
        let expected: Tree = files.entries().map(|(_, path, entry)| (path.clone(), entry.clone())).collect();
        assert_eq!(stacked(&after, number), expected, "image {number}");
    }
    let stack = |planned: &[Planned], image: usize| -> Vec<(String, Tree)> {
        let own = planned.iter().filter(|layer| layer.images.contains(&image));
        own.map(|layer| (layer.label(), layer.tree.clone())).collect()
    };
    for image in 0..2 {
        assert_eq!(stack(&after, image + 1), stack(&before, image));
        assert_ne!(
            stack(&layers(&new, &LockedPlan::default(), Limits::default()), image + 1),
            stack(&before, image)
        );
    }
    // The entry point is the same file everywhere: the newcomer uses the locked layer.
    assert_eq!(after.last().map(|layer| layer.images.len()), Some(3));
}

#[test]
fn a_removed_or_changed_image_leaves_the_others_alone() {
    let old = [shared_and_own("3.5.8"), shared_and_own("3.5.9")];
    let before = layers(&old, &LockedPlan::default(), Limits::default());
    let lock = LockedPlan::of(&before, old.iter());
    let digests = |planned: &[Planned], image: usize| -> Vec<Digest> {
        let own = planned.iter().filter(|layer| layer.images.contains(&image));
        own.map(|layer| locked::fingerprint(&layer.tree)).collect()
    };
    let alone = layers(&old[1..], &lock, Limits::default());
    assert_eq!(digests(&alone, 0), digests(&before, 1));
    let changed = [shared_and_own("3.5.10"), old[1].clone()];
    let after = layers(&changed, &lock, Limits::default());
    assert_eq!(digests(&after, 1), digests(&before, 1));
    assert_eq!(digests(&after, 0)[0], digests(&before, 0)[0], "what did not change is still shared");
}

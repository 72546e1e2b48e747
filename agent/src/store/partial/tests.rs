//! The contents and the reported ranges of a partial blob.

use super::{super::Config, *};

fn store(directory: &tempfile::TempDir) -> Store {
    Store::open(&Config::of(directory.path())).unwrap()
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test]
async fn pieces_in_any_order_become_one_verified_blob() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let content = Bytes::from(bytes(1_000_000));
    let digest = Digest::of(&content);
    let partial = store.partial(&digest).unwrap();
    partial.set_size(1_000_000).unwrap();
    for range in [700_000..1_000_000, 0..300_000, 300_000..700_000] {
        partial.write(range.start as u64, &[content.slice(range)]).unwrap();
    }
    assert!(store.blob(&digest).await.unwrap().is_none(), "not before the digest was checked");
    assert_eq!(partial.finish().unwrap(), Finish::Verified);
    partial.commit().unwrap();
    assert_eq!(store.blob(&digest).await.unwrap().unwrap().read_all().await.unwrap(), content);
    assert_eq!(fs::read_dir(directory.path().join("partial-v1")).unwrap().count(), 0);
}

#[tokio::test]
async fn wrong_bytes_are_never_published() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let digest = Digest::of(b"right");
    let partial = store.partial(&digest).unwrap();
    partial.set_size(5).unwrap();
    partial.write(0, &[Bytes::from_static(b"wrong")]).unwrap();
    assert!(matches!(partial.commit(), Err(StoreError::Mismatch(_))));
    assert_eq!(partial.finish().unwrap(), Finish::Mismatch { found: Digest::of(b"wrong") });
    partial.discard().unwrap();
    assert!(store.blob(&digest).await.unwrap().is_none());
    assert_eq!(fs::read_dir(directory.path().join("partial-v1")).unwrap().count(), 0);
}

#[test]
fn a_parked_partial_is_continued_and_its_beginning_hashed_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let content = Bytes::from(bytes(10_000));
    let digest = Digest::of(&content);
    let partial = store.partial(&digest).unwrap();
    partial.set_size(10_000).unwrap();
    partial.write(0, &[content.slice(..4_000)]).unwrap();
    partial.park().unwrap();
    drop(partial);
    let partial = store.partial(&digest).unwrap();
    assert_eq!((partial.size(), partial.gaps(0..10_000)), (Some(10_000), vec![4_000..10_000]));
    partial.write(4_000, &[content.slice(4_000..)]).unwrap();
    assert_eq!(partial.finish().unwrap(), Finish::Verified);
}

#[test]
fn a_byte_that_is_there_is_never_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let partial = store.partial(&Digest::of(b"abcdef")).unwrap();
    partial.set_size(6).unwrap();
    partial.write(1, &[Bytes::from_static(b"bc")]).unwrap();
    partial.write(0, &[Bytes::from_static(b"aX"), Bytes::from_static(b"Xdef")]).unwrap();
    assert_eq!(partial.finish().unwrap(), Finish::Verified);
}

#[test]
fn discarded_or_replaced_bytes_are_hashed_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let partial = store.partial(&Digest::of(b"abcdef")).unwrap();
    partial.set_size(6).unwrap();
    partial.write(0, &[Bytes::from_static(b"aXcXef")]).unwrap();
    assert!(matches!(partial.finish().unwrap(), Finish::Mismatch { .. }));
    partial.give_up(1..2).unwrap();
    assert_eq!(partial.gaps(0..6), [1..2]);
    assert!(!partial.replace(1, &Bytes::from_static(b"b")).unwrap(), "no bytes were there");
    assert!(!partial.replace(4, &Bytes::from_static(b"ef")).unwrap(), "the same bytes were there");
    assert!(partial.replace(2, &Bytes::from_static(b"cd")).unwrap());
    assert_eq!(partial.finish().unwrap(), Finish::Verified);
    partial.commit().unwrap();
    assert!(!partial.replace(0, &Bytes::from_static(b"X")).unwrap(), "published bytes stay");
    partial.give_up(0..6).unwrap();
    assert_eq!(partial.total(), 6);
}

#[test]
fn many_requests_save_the_map_at_once_and_none_fails() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let content = Bytes::from(bytes(1_000));
    let partial = store.partial(&Digest::of(&content)).unwrap();
    partial.set_size(1_000).unwrap();
    std::thread::scope(|scope| {
        for lane in 0..4_u64 {
            let (partial, content) = (&partial, &content);
            scope.spawn(move || {
                for at in 0..250 {
                    let at = lane * 250 + at;
                    let index = usize::try_from(at).unwrap();
                    partial.write(at, &[content.slice(index..=index)]).unwrap();
                    partial.save_map().unwrap();
                }
            });
        }
    });
    let map = Map::read(&partial.map_path, 1_000);
    assert_eq!((map.size, map.have), (Some(1_000), vec![(0, 1_000)]));
    assert_eq!(partial.finish().unwrap(), Finish::Verified);
}

/// The size changes while aborted requests still write: the verified bytes must be those in the file.
#[test]
fn a_new_size_in_the_middle_of_a_write_leaves_no_hole_behind_the_hash() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let content = Bytes::from(bytes(300_000));
    let digest = Digest::of(&content);
    for round in 0..300 {
        let partial = store.partial(&digest).unwrap();
        partial.set_size(300_000).unwrap();
        std::thread::scope(|scope| {
            let writes = scope.spawn(|| {
                for start in (0..300_000).step_by(10_000) {
                    partial.write(start as u64, &[content.slice(start..start + 10_000)]).unwrap();
                }
            });
            std::thread::sleep(std::time::Duration::from_micros(round * 3 % 700));
            partial.set_size(300_001).unwrap();
            partial.set_size(300_000).unwrap();
            writes.join().unwrap();
        });
        for gap in partial.gaps(0..300_000) {
            let range = usize::try_from(gap.start).unwrap()..usize::try_from(gap.end).unwrap();
            partial.write(gap.start, &[content.slice(range)]).unwrap();
        }
        if partial.finish().unwrap() == Finish::Verified {
            partial.commit().unwrap();
            partial.set_size(1).unwrap();
            let mut file = vec![0; 300_000];
            partial.file().read_exact_at(&mut file, 0).unwrap();
            assert_eq!(Digest::of(&file), digest, "round {round}");
        }
        partial.discard().unwrap();
    }
}

#[test]
fn a_map_with_more_than_the_file_contains_is_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let digest = Digest::of(b"x");
    fs::write(store.0.paths.partial_map(&digest), r#"{"size":100,"have":[[0,50]]}"#).unwrap();
    assert_eq!(store.partial(&digest).unwrap().total(), 0);
    fs::write(store.0.paths.partial_map(&digest), "junk").unwrap();
    assert_eq!(store.partial(&digest).unwrap().size(), None);
}

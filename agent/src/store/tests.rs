use std::fs;

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&Config::of(directory.path())).unwrap();
    (directory, store)
}

fn record() -> TagRecord {
    TagRecord {
        digest: Digest::of(b"m"),
        media_type: "a/b".into(),
        size: 1,
        confirmed: 7,
        pinned: false,
        held: false,
        imported: false,
        unconfirmed: false,
    }
}

#[tokio::test]
async fn content_is_stored_only_under_its_own_digest() {
    let (_directory, store) = store();
    let digest = Digest::of(b"hello");
    assert!(matches!(store.put(&digest, b"jello"), Err(StoreError::Mismatch(_))));
    assert!(store.blob(&digest).await.unwrap().is_none());
    store.put(&digest, b"hello").unwrap();
    assert_eq!(store.blob(&digest).await.unwrap().unwrap().size(), 5);
    assert_eq!(store.totals(), Totals { blobs: 1, bytes: 5 });
}

#[tokio::test]
async fn content_that_is_damaged_on_disk_is_replaced_by_the_right_one() {
    let (_directory, store) = store();
    let digest = Digest::of(b"hello");
    store.put(&digest, b"hello").unwrap();
    let path = store.0.paths.blob(&digest);
    for damaged in [&b"jello"[..], b"hell", b""] {
        // Stored blobs are read-only; damage ignores that.
        fs::remove_file(&path).unwrap();
        fs::write(&path, damaged).unwrap();
        store.put(&digest, b"hello").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(store.totals(), Totals { blobs: 1, bytes: 5 });
    }
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused() {
    let (directory, _store) = store();
    let second = Store::open(&Config::of(directory.path()));
    assert!(matches!(second, Err(StoreError::Locked(_))));
}

#[test]
fn a_directory_of_another_format_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("format"), "hearth-store-v9").unwrap();
    let error = Store::open(&Config::of(directory.path())).unwrap_err();
    assert!(matches!(error, StoreError::Format { .. }), "{error}");
}

#[tokio::test]
async fn tags_are_kept_over_a_restart_until_they_are_removed() {
    let (directory, store) = store();
    let repository = Repository { registry: "r.test:5000".parse().unwrap(), name: "a/b".parse().unwrap() };
    let tag: Tag = "v1".parse().unwrap();
    let record = record();
    store.set_tag(&repository, &tag, &record).unwrap();
    store.close();
    drop(store);
    let store = Store::open(&Config::of(directory.path())).unwrap();
    assert_eq!(store.tag(&repository, &tag).await.unwrap(), Some(record));
    let fact = store.references().unwrap().remove(0);
    assert!(store.set_pin(&fact, true).unwrap());
    store.remove_tag(&repository, &tag).unwrap();
    assert!(store.tag(&repository, &tag).await.unwrap().unwrap().pinned, "a pinned tag stays");
    assert!(store.set_pin(&fact, false).unwrap());
    store.remove_tag(&repository, &tag).unwrap();
    store.remove_tag(&repository, &tag).unwrap();
    assert_eq!(store.tag(&repository, &tag).await.unwrap(), None);
    assert!(!store.set_pin(&fact, true).unwrap());
}

#[tokio::test]
async fn a_damaged_reference_counts_as_unknown() {
    let (_directory, store) = store();
    let repository = Repository { registry: "r.test".parse().unwrap(), name: "a".parse().unwrap() };
    let tag: Tag = "v1".parse().unwrap();
    let record = record();
    store.set_tag(&repository, &tag, &record).unwrap();
    fs::write(store.0.paths.tag(&repository, &tag), "{\"dig").unwrap();
    assert_eq!(store.tag(&repository, &tag).await.unwrap(), None);
}

#[tokio::test]
async fn a_lost_or_broken_index_is_rebuilt_from_the_blobs() {
    for damage in ["remove", "junk", "file"] {
        let (directory, store) = store();
        store.put(&Digest::of(b"one"), b"one").unwrap();
        store.put(&Digest::of(b"three"), b"three").unwrap();
        store.close();
        drop(store);
        let index = directory.path().join("index-v1");
        match damage {
            "remove" => fs::remove_dir_all(&index).unwrap(),
            "junk" => {
                for entry in fs::read_dir(&index).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_file() {
                        fs::write(path, b"junk junk junk").unwrap();
                    }
                }
            }
            _ => {
                fs::remove_dir_all(&index).unwrap();
                fs::write(&index, b"not a directory").unwrap();
            }
        }
        let store = Store::open(&Config::of(directory.path())).unwrap();
        assert!(store.blob(&Digest::of(b"one")).await.unwrap().is_some(), "{damage}: hits need no index");
        assert_eq!(store.totals(), Totals { blobs: 2, bytes: 8 }, "{damage}");
    }
}

#[test]
fn a_clean_index_is_not_rebuilt() {
    let (directory, store) = store();
    store.put(&Digest::of(b"one"), b"one").unwrap();
    store.close();
    drop(store);
    let store = Store::open(&Config::of(directory.path())).unwrap();
    assert_eq!(store.totals(), Totals { blobs: 1, bytes: 3 });
}

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::file::{File, OpenError};
use super::format::Record;
use super::pages::Pages;
use super::{SpoolError, file};
use crate::webhook::{Metadata, Webhook};

const PLENTY: u64 = 1 << 30;

/// A folder that is gone when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("penstock-spool-{:016x}", fastrand::u64(..)));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn open(&self, max_bytes: u64) -> File {
        File::open(&self.0, max_bytes).unwrap()
    }

    fn names(&self) -> Vec<String> {
        fs::read_dir(&self.0).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn webhook(n: i64) -> Webhook {
    let metadata = Metadata {
        tenant: "faster".into(),
        stream: "any".into(),
        received_at_ms: 1000 + n,
        key: format!("key {n}"),
        event_type: "unknown".into(),
        signature: "unsigned".into(),
        traceparent: String::new(),
        evidence: None,
    };
    Webhook { metadata, body: vec![u8::try_from(n % 256).unwrap(); 3000].into() }
}

fn outcomes(file: &mut File, numbers: std::ops::Range<i64>) -> Vec<Result<(), SpoolError>> {
    let webhooks: Vec<_> = numbers.map(webhook).collect();
    file.append(webhooks.iter())
}

fn append(file: &mut File, numbers: std::ops::Range<i64>) -> Result<(), SpoolError> {
    outcomes(file, numbers).into_iter().collect()
}

fn numbers(records: &[Record]) -> Vec<i64> {
    records.iter().map(|record| record.webhook.metadata.received_at_ms - 1000).collect()
}

/// Writes rubbish over a part of the file, as a failing disk would.
fn damage(path: &Path, from: u64, bytes: usize) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    file.write_all(&vec![0xA5; bytes]).unwrap();
}

#[test]
fn records_keep_everything_and_their_order_across_restarts() {
    let folder = Folder::new();
    append(&mut folder.open(PLENTY), 0..5).unwrap();
    let mut file = folder.open(PLENTY);
    let records = file.after("faster", i64::MIN, 3);
    assert_eq!(records[1].webhook, webhook(1));
    assert_eq!(numbers(&records), [0, 1, 2]);
    assert_eq!(numbers(&file.after("faster", records[2].id, 9)), [3, 4]);
    assert_eq!((file.size().records, file.oldest_ms()), (5, 1000));
    file.delete(&[records[0].id, records[1].id]).unwrap();
    assert_eq!((file.size().records, file.oldest_ms()), (3, 1002));
    let rest: Vec<i64> = file.after("faster", i64::MIN, 9).iter().map(|record| record.id).collect();
    file.delete(&rest).unwrap();
    assert_eq!((file.size(), file.oldest_ms()), (file::Size::default(), 0));
}

#[test]
fn of_a_group_for_which_there_is_not_enough_room_those_are_stored_that_fit() {
    let folder = Folder::new();
    let mut file = folder.open(10_000);
    append(&mut file, 0..2).unwrap();
    assert_eq!(outcomes(&mut file, 2..4), [Ok(()), Err(SpoolError::Full)]);
    let records = file.after("faster", i64::MIN, 9);
    assert_eq!((numbers(&records), file.size().records), (vec![0, 1, 2], 3));
    file.delete(&[records[0].id]).unwrap();
    append(&mut file, 4..5).unwrap();
    assert_eq!(append(&mut file, 5..6), Err(SpoolError::Full));

    let (large, small) = (Webhook { body: vec![0; 20_000].into(), ..webhook(6) }, webhook(7));
    let other = Folder::new();
    let mut file = other.open(10_000);
    assert_eq!(file.append([&large, &small].into_iter()), [Err(SpoolError::Full), Ok(())]);
}

#[test]
fn a_folder_belongs_to_one_process() {
    let folder = Folder::new();
    let _file = folder.open(PLENTY);
    let error = File::open(&folder.0, PLENTY).err().unwrap();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    assert!(error.to_string().contains("SPOOL_DIR"));
}

#[test]
fn a_file_of_rubbish_is_set_aside_and_a_new_one_started() {
    let folder = Folder::new();
    fs::write(folder.0.join("spool.db"), "this is no database".repeat(1000)).unwrap();
    let mut file = folder.open(PLENTY);
    assert_eq!((file.corruptions(), file.size().records), (1, 0));
    append(&mut file, 0..1).unwrap();
    assert!(folder.names().iter().any(|name| name.starts_with("corrupt-spool-2")));
}

#[test]
fn what_a_damaged_file_still_holds_is_saved() {
    let folder = Folder::new();
    append(&mut folder.open(PLENTY), 0..200).unwrap();
    let path = folder.0.join("spool.db");
    damage(&path, fs::metadata(&path).unwrap().len() / 2, 40_000);
    let mut file = folder.open(PLENTY);
    let saved = numbers(&file.after("faster", i64::MIN, 1000));
    assert!(file.corruptions() > 0);
    assert!(saved.len() > 50 && saved.len() < 200, "{} saved", saved.len());
    assert!(saved.is_sorted());
    assert_eq!(file.size().records, saved.len() as u64);
    append(&mut file, 200..201).unwrap();
}

#[test]
fn a_body_that_changed_on_disk_is_not_published() {
    let folder = Folder::new();
    append(&mut folder.open(PLENTY), 0..3).unwrap();
    let path = folder.0.join("spool.db");
    let content = fs::read(&path).unwrap();
    let body_of_1 = content.windows(100).position(|part| part == [1; 100]).unwrap();
    damage(&path, body_of_1 as u64, 10);
    let mut file = folder.open(PLENTY);
    assert_eq!(numbers(&file.after("faster", i64::MIN, 10)), [0, 2]);
    assert_eq!((file.size().records, file.corruptions()), (2, 1));
    assert!(folder.names().iter().any(|name| name.starts_with("damaged-records-2")));
}

#[test]
fn a_record_that_was_not_committed_is_not_there() {
    let folder = Folder::new();
    append(&mut folder.open(PLENTY), 0..3).unwrap();
    // What a crash leaves of a commit that wasn't finished.
    let mut log =
        fs::OpenOptions::new().create(true).append(true).open(folder.0.join("spool.db-wal")).unwrap();
    log.write_all(&[7; 5000]).unwrap();
    assert_eq!(numbers(&folder.open(PLENTY).after("faster", i64::MIN, 10)), [0, 1, 2]);
}

#[test]
fn a_spool_can_be_read_page_by_page_while_it_is_in_use() {
    let folder = Folder::new();
    let mut file = folder.open(PLENTY);
    append(&mut file, 0..150).unwrap();
    let (mut pages, mut seen, mut number) = (Pages::open(&folder.0).unwrap(), Vec::new(), 0);
    while let Some(records) = pages.next().unwrap() {
        seen.extend(numbers(&records));
        number += 1;
    }
    assert_eq!((seen, number), ((0..150).collect(), 3));
}

fn of_tenant(tenant: &str, n: i64) -> Webhook {
    let mut webhook = webhook(n);
    webhook.metadata.tenant = tenant.into();
    webhook
}

#[test]
fn each_tenant_has_its_records_in_their_order() {
    let folder = Folder::new();
    let mut file = folder.open(PLENTY);
    assert!(file.tenants().is_empty());
    let webhooks = ["b", "a", "b", "c", "a"].into_iter().zip(0..).map(|(tenant, n)| of_tenant(tenant, n));
    let webhooks: Vec<Webhook> = webhooks.collect();
    file.append(webhooks.iter());
    assert_eq!(file.tenants(), ["a", "b", "c"]);
    assert_eq!(numbers(&file.after("b", i64::MIN, 9)), [0, 2]);
    let first_of_a = file.after("a", i64::MIN, 1)[0].id;
    assert_eq!(numbers(&file.after("a", first_of_a, 9)), [4]);
    let c = file.after("c", i64::MIN, 9)[0].id;
    file.delete(&[c]).unwrap();
    assert_eq!(file.tenants(), ["a", "b"]);
}

#[test]
fn large_records_are_read_some_at_a_time() {
    let folder = Folder::new();
    let mut file = folder.open(PLENTY);
    let large: Vec<Webhook> =
        (0..10).map(|n| Webhook { body: vec![0; 1 << 20].into(), ..webhook(n) }).collect();
    file.append(large.iter());
    assert_eq!(numbers(&file.after("faster", i64::MIN, 64)), [0, 1, 2, 3]);
}

#[test]
fn a_file_of_the_version_before_is_opened_and_its_records_come_first() {
    let folder = Folder::new();
    append(&mut folder.open(PLENTY), 0..3).unwrap();
    let old = rusqlite::Connection::open(folder.0.join("spool.db")).unwrap();
    old.execute_batch("DROP INDEX records_of_tenant; ALTER TABLE records DROP COLUMN tenant").unwrap();
    drop(old);
    let mut file = folder.open(PLENTY);
    append(&mut file, 3..4).unwrap();
    assert_eq!(file.tenants(), ["", "faster"]);
    let old = file.after("", i64::MIN, 9);
    assert_eq!((numbers(&old), &old[0].webhook.metadata.tenant), (vec![0, 1, 2], &"faster".to_owned()));
    assert_eq!(numbers(&file.after("faster", i64::MIN, 9)), [3]);
    drop(file);
    assert_eq!(folder.open(PLENTY).tenants(), ["", "faster"]);
}

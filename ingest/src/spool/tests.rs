use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::File;
use super::folder::OpenError;
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
        self.open_again(max_bytes, 0)
    }

    fn open_again(&self, max_bytes: u64, last_read: i64) -> File {
        let taken = super::folder::Folder::take(&self.0).unwrap();
        File::open(&Arc::new(taken), max_bytes, last_read).unwrap()
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

/// Copies what damaged files hold, to the end.
fn copy_all(file: &mut File) {
    while file.catch_up().unwrap() {}
    assert_eq!(file.left_to_copy(), 0);
}

fn all(file: &mut File) -> Vec<i64> {
    numbers(&file.after("faster", i64::MIN, 1000).unwrap().records)
}

fn numbers(records: &[Record]) -> Vec<i64> {
    records.iter().map(|record| record.webhook.metadata.received_at_ms - 1000).collect()
}

/// Writes over a part of the file, as a failing disk would.
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
    let records = file.after("faster", i64::MIN, 3).unwrap().records;
    assert_eq!(records[1].webhook, webhook(1));
    assert_eq!(numbers(&records), [0, 1, 2]);
    assert_eq!(numbers(&file.after("faster", records[2].id, 9).unwrap().records), [3, 4]);
    assert_eq!((file.size().records, file.oldest_ms()), (5, 1000));
    file.delete(&[records[0].id, records[1].id]).unwrap();
    assert_eq!((file.size().records, file.oldest_ms()), (3, 1002));
    let rest: Vec<i64> =
        file.after("faster", i64::MIN, 9).unwrap().records.iter().map(|record| record.id).collect();
    file.delete(&rest).unwrap();
    assert_eq!((file.size(), file.oldest_ms()), (file::Size::default(), 0));
}

#[test]
fn of_a_group_for_which_there_is_not_enough_room_those_are_stored_that_fit() {
    let folder = Folder::new();
    let mut file = folder.open(10_000);
    append(&mut file, 0..2).unwrap();
    assert_eq!(outcomes(&mut file, 2..4), [Ok(()), Err(SpoolError::Full)]);
    let records = file.after("faster", i64::MIN, 9).unwrap().records;
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
    let error = super::folder::Folder::take(&folder.0).unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    assert!(error.to_string().contains("SPOOL_DIR"));
}

#[test]
fn a_file_that_is_no_database_is_set_aside_and_a_new_one_started() {
    let folder = Folder::new();
    fs::write(folder.0.join("spool.db"), "this is no database".repeat(1000)).unwrap();
    let mut file = folder.open(PLENTY);
    copy_all(&mut file);
    assert_eq!((file.corruptions(), file.size().records), (1, 0));
    append(&mut file, 0..1).unwrap();
    assert!(
        folder.names().iter().any(|name| name.starts_with("corrupt-spool-2") && name.ends_with(".copied"))
    );
}

/// A spool with this many records, whose file is damaged in these places, in hundredths of its length.
fn damaged(records: i64, places: &[u64]) -> Folder {
    let folder = Folder::new();
    append(&mut folder.open(PLENTY), 0..records).unwrap();
    let path = folder.0.join("spool.db");
    let length = fs::metadata(&path).unwrap().len();
    for place in places {
        let page = length * place / 100 / 4096;
        damage(&path, page * 4096, 8192);
    }
    folder
}

/// Otherwise, in an outage of RabbitMQ, a start could take no webhooks while it reads some GiB.
#[test]
fn a_file_is_read_through_unless_it_was_closed() {
    let folder = Folder::new();
    let mut file = folder.open(PLENTY);
    append(&mut file, 0..200).unwrap();
    file.check().unwrap();
    file.close().unwrap();
    drop(file);
    let path = folder.0.join("spool.db");
    damage(&path, fs::metadata(&path).unwrap().len() / 2 / 4096 * 4096, 8192);
    let mut file = folder.open(PLENTY);
    assert_eq!((file.corruptions(), file.size().records), (0, 200), "it isn't read");
    file.check().unwrap();
    drop(file);
    assert_eq!(folder.open(PLENTY).corruptions(), 1, "it is used again, and was not closed");
}

#[test]
fn what_a_damaged_file_still_holds_is_saved_also_between_two_damaged_places() {
    let folder = damaged(2000, &[30, 60]);
    let mut file = folder.open(PLENTY);
    assert_eq!((file.corruptions(), file.size().records), (1, 0));
    assert!(file.left_to_copy() > 0);
    copy_all(&mut file);
    let saved: Vec<i64> = pages(&mut file);
    assert!(saved.len() > 1900 && saved.len() < 2000, "{} saved", saved.len());
    assert!(saved.is_sorted());
    assert_eq!(file.size().records, saved.len() as u64);
    append(&mut file, 2000..2001).unwrap();
}

fn pages(file: &mut File) -> Vec<i64> {
    let (mut found, mut at) = (Vec::new(), i64::MIN);
    loop {
        let records = file.after("faster", at, 1000).unwrap().records;
        let Some(last) = records.last() else { return found };
        at = last.id;
        found.extend(numbers(&records));
    }
}

#[test]
fn copying_a_damaged_file_goes_on_where_a_process_was_killed() {
    let folder = damaged(2000, &[50]);
    let mut file = folder.open(PLENTY);
    let (mut found, mut rounds) = (BTreeSet::new(), 0);
    while file.left_to_copy() > 0 {
        file.catch_up().unwrap();
        // What was copied before is published meanwhile; what is copied again would be published again.
        let records = file.after("faster", i64::MIN, 1000).unwrap().records;
        for n in numbers(&records) {
            assert!(found.insert(n), "{n} twice");
        }
        file.delete(&records.iter().map(|record| record.id).collect::<Vec<_>>()).unwrap();
        drop(file);
        file = folder.open(PLENTY);
        rounds += 1;
    }
    assert!(rounds > 5 && found.len() > 1900, "{rounds} rounds, {} found", found.len());
}

#[test]
fn a_move_that_was_interrupted_is_ended() {
    let names =
        |folder: &Folder, with: &str| folder.names().into_iter().filter(|name| name.contains(with)).count();
    for renamed in 0..=3 {
        let folder = Folder::new();
        // Left as a kill leaves them: some records are in the log only.
        let mut file = folder.open(PLENTY);
        append(&mut file, 0..50).unwrap();
        let copies = ["-wal", "-shm", ""]
            .map(|suffix| (suffix, fs::read(folder.0.join(format!("spool.db{suffix}"))).unwrap()));
        drop(file);
        let moved = "corrupt-spool-20260101T000000Z-00000000";
        fs::write(folder.0.join("setting-aside"), moved).unwrap();
        fs::remove_file(folder.0.join("spool.db")).unwrap();
        for (n, (suffix, bytes)) in copies.iter().enumerate() {
            let name = if n < renamed { moved } else { "spool.db" };
            fs::write(folder.0.join(format!("{name}{suffix}")), bytes).unwrap();
        }
        let mut file = folder.open(PLENTY);
        copy_all(&mut file);
        assert_eq!(pages(&mut file), (0..50).collect::<Vec<_>>(), "{renamed}");
        assert_eq!(names(&folder, "setting-aside"), 0);
    }
}

#[test]
fn a_damaged_file_that_an_earlier_version_left_is_copied_once() {
    let folder = Folder::new();
    append(&mut folder.open(PLENTY), 0..30).unwrap();
    let left = folder.0.join("corrupt-spool-20260101T000000Z-00000000");
    fs::rename(folder.0.join("spool.db"), &left).unwrap();
    for _ in 0..2 {
        let mut file = folder.open(PLENTY);
        copy_all(&mut file);
        assert_eq!(all(&mut file), (0..30).collect::<Vec<_>>());
    }
    assert!(!left.exists());
}

#[test]
fn a_damaged_file_is_copied_only_while_little_is_in_the_new_one() {
    let folder = damaged(200, &[50]);
    let mut file = folder.open(100_000);
    append(&mut file, 300..320).unwrap();
    assert!(!file.catch_up().unwrap());
    assert!(file.left_to_copy() > 100);
    let records = file.after("faster", i64::MIN, 1000).unwrap().records;
    file.delete(&records.iter().map(|record| record.id).collect::<Vec<_>>()).unwrap();
    assert!(file.catch_up().unwrap());
}

#[test]
fn what_was_read_before_the_file_was_replaced_deletes_nothing_in_the_new_one() {
    let folder = Folder::new();
    let mut file = folder.open(PLENTY);
    // More than SQLite keeps in memory.
    append(&mut file, 0..3000).unwrap();
    let mut records = file.after("faster", i64::MIN, 64).unwrap().records;
    let read: Vec<i64> = records.iter().map(|record| record.id).collect();
    damage(&folder.0.join("spool.db"), 1 << 20, 2 << 20);
    while let Some(last) = records.last() {
        records = file.after("faster", last.id, 1000).map_or_else(Vec::new, |page| page.records);
    }
    assert_eq!((file.corruptions(), file.size().records), (1, 0));
    append(&mut file, 3000..3064).unwrap();
    file.delete(&read).unwrap();
    assert_eq!(file.size().records, 64);
}

#[test]
fn a_file_that_is_opened_after_another_was_lost_gives_no_number_again() {
    let folder = Folder::new();
    let mut file = folder.open(PLENTY);
    append(&mut file, 0..5).unwrap();
    let read: Vec<i64> = file.after("faster", 0, 5).unwrap().records.iter().map(|record| record.id).collect();
    let last_read = file.last_read();
    drop(file);
    for name in folder.names().iter().filter(|name| name.starts_with("spool.db")) {
        fs::remove_file(folder.0.join(name)).unwrap();
    }
    for _ in 0..2 {
        let mut file = folder.open_again(PLENTY, last_read);
        append(&mut file, 5..10).unwrap();
        file.delete(&read).unwrap();
        assert_eq!(file.size().records, 5, "what is published of the lost file isn't deleted in this one");
        let new: Vec<i64> =
            file.after("faster", 0, 9).unwrap().records.iter().map(|record| record.id).collect();
        file.delete(&new).unwrap();
    }
}

#[test]
fn files_and_folder_are_for_their_owner_alone() {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let parent = Folder::new();
    let folder = Folder(parent.0.join("spool"));
    append(&mut folder.open(PLENTY), 0..1).unwrap();
    assert_eq!(mode(&folder.0), 0o700);
    // As an earlier version has left them.
    for name in folder.names() {
        fs::set_permissions(folder.0.join(name), Permissions::from_mode(0o644)).unwrap();
    }
    fs::write(folder.0.join("corrupt-spool-1"), "").unwrap();
    fs::write(folder.0.join("of somebody else"), "").unwrap();
    let mut file = folder.open(PLENTY);
    append(&mut file, 1..2).unwrap();
    for name in folder.names() {
        let is_ours = name != "of somebody else";
        assert_eq!(mode(&folder.0.join(&name)) == 0o600, is_ours, "{name}");
    }
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
    assert_eq!(numbers(&file.after("faster", i64::MIN, 10).unwrap().records), [0, 2]);
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
    assert_eq!(numbers(&folder.open(PLENTY).after("faster", i64::MIN, 10).unwrap().records), [0, 1, 2]);
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
    assert_eq!(numbers(&file.after("b", i64::MIN, 9).unwrap().records), [0, 2]);
    let first_of_a = file.after("a", i64::MIN, 1).unwrap().records[0].id;
    assert_eq!(numbers(&file.after("a", first_of_a, 9).unwrap().records), [4]);
    let c = file.after("c", i64::MIN, 9).unwrap().records[0].id;
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
    assert_eq!(numbers(&file.after("faster", i64::MIN, 64).unwrap().records), [0, 1, 2, 3]);
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
    let old = file.after("", i64::MIN, 9).unwrap().records;
    assert_eq!((numbers(&old), &old[0].webhook.metadata.tenant), (vec![0, 1, 2], &"faster".to_owned()));
    assert_eq!(numbers(&file.after("faster", i64::MIN, 9).unwrap().records), [3]);
    drop(file);
    let mut file = folder.open(PLENTY);
    while file.catch_up().unwrap() {}
    assert_eq!((file.tenants(), all(&mut file)), (vec!["faster".to_owned()], vec![0, 1, 2, 3]));
    assert_eq!(file.size().records, 4);
}

fn bytes_on_disk(folder: &Folder) -> u64 {
    let bytes = |name| fs::metadata(folder.0.join(name)).map_or(0, |file| file.len());
    bytes("spool.db") + bytes("spool.db-wal")
}

#[test]
fn an_emptied_spool_gives_its_room_back_to_the_disk() {
    let folder = Folder::new();
    let mut file = folder.open(PLENTY);
    append(&mut file, 0..2000).unwrap();
    assert!(bytes_on_disk(&folder) > 6_000_000);
    for id in file.after("faster", i64::MIN, 1).unwrap().records[0].id..=2000 {
        file.delete(&[id]).unwrap();
    }
    copy_all(&mut file);
    assert_eq!(file.size().records, 0);
    assert!(bytes_on_disk(&folder) < 200_000, "{} bytes", bytes_on_disk(&folder));
    drop(file);

    execute(&folder, "PRAGMA auto_vacuum = NONE; VACUUM");
    let mut file = folder.open(PLENTY);
    append(&mut file, 0..10).unwrap();
    let ids: Vec<i64> = file.after("faster", 0, 10).unwrap().records.iter().map(|record| record.id).collect();
    file.delete(&ids).unwrap();
    // Ends, though a file that can't shrink keeps its pages.
    copy_all(&mut file);
}

#[test]
fn the_log_stays_small_however_much_is_appended_at_once() {
    let folder = Folder::new();
    let mut file = folder.open(PLENTY);
    let large = Webhook { body: vec![1; 1 << 20].into(), ..webhook(1) };
    assert!(file.append(std::iter::repeat_n(&large, 30)).iter().all(Result::is_ok));
    let log = fs::metadata(folder.0.join("spool.db-wal")).unwrap().len() >> 20;
    assert!(log <= 8, "{log} MiB");
}

/// Executes SQL as another process could.
fn execute(folder: &Folder, sql: &str) {
    rusqlite::Connection::open(folder.0.join("spool.db")).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn damaged_records_that_cannot_be_deleted_are_set_aside_once_and_passed_over() {
    let folder = Folder::new();
    let mut file = folder.open(PLENTY);
    append(&mut file, 0..3).unwrap();
    execute(
        &folder,
        "UPDATE records SET body = 'changed' WHERE id < 3;
         CREATE TRIGGER stuck BEFORE DELETE ON records BEGIN SELECT RAISE(FAIL, 'stuck'); END",
    );
    for _ in 0..3 {
        let page = file.after("faster", i64::MIN, 2).unwrap();
        assert_eq!((numbers(&page.records), page.last, page.is_whole), (vec![], Some(2), false));
        let page = file.after("faster", 2, 2).unwrap();
        assert_eq!((numbers(&page.records), page.last, page.is_whole), (vec![2], Some(3), true));
    }
    let aside = || folder.names().iter().filter(|name| name.starts_with("damaged-records-")).count();
    assert_eq!((aside(), file.corruptions(), file.size().records), (1, 1, 3));
    execute(&folder, "DROP TRIGGER stuck");
    assert!(file.after("faster", i64::MIN, 2).unwrap().is_whole);
    assert_eq!((aside(), file.size().records), (1, 1));
}

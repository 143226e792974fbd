//! What is on disk, see [`super`]: the tables, and a record in them.

use std::path::Path;

use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, ffi, params};
use sha2::{Digest, Sha256};
use shared::telemetry::chain;
use tracing::warn;

use super::folder::private;
use crate::webhook::{Metadata, Webhook};

/// The spool's file, within its folder.
pub const FILE: &str = "spool.db";
/// What a record takes besides body and metadata, roughly, in bytes.
const RECORD_OVERHEAD: u64 = 64;

/// A read returns bodies of this size together, or one body more. In bytes.
pub const PAGE_BYTES: usize = 4 << 20;

/// Tenants entered at a time, each of which writes the whole row.
const ENTERED: usize = 64;

/// A webhook in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the order.
    pub id: i64,
    /// The webhook.
    pub webhook: Webhook,
}

/// Opens the file, which is made if it is missing. Fails if it is damaged: unless it was
/// [closed](mark_closed), it is read through, which takes a slow disk a minute for some GiB.
pub fn connect(folder: &Path) -> rusqlite::Result<Connection> {
    let path = folder.join(FILE);
    // SQLite would make it readable for others. If this fails, so does what comes next.
    let _ = private(&path);
    let connection = Connection::open(path)?;
    connection.execute_batch(&format!(
        "PRAGMA auto_vacuum = INCREMENTAL;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA cache_size = -4096;
         CREATE TABLE IF NOT EXISTS records (
             id INTEGER PRIMARY KEY AUTOINCREMENT,
             tenant TEXT NOT NULL DEFAULT '',
             received_at_ms INTEGER NOT NULL,
             facts TEXT NOT NULL,
             body BLOB NOT NULL,
             checksum BLOB NOT NULL);
         CREATE TABLE IF NOT EXISTS copied (file TEXT PRIMARY KEY, id INTEGER NOT NULL);
         CREATE TABLE IF NOT EXISTS totals (records INTEGER NOT NULL, bytes INTEGER NOT NULL);
         INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
         CREATE TABLE IF NOT EXISTS writable (checks INTEGER NOT NULL);
         INSERT INTO writable SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM writable);
         CREATE TRIGGER IF NOT EXISTS count_deleted AFTER DELETE ON records BEGIN
             UPDATE totals SET records = records - 1,
                 bytes = bytes - length(CAST(old.facts AS BLOB)) - length(old.body) - {RECORD_OVERHEAD};
         END;"
    ))?;
    if !is_closed(&connection)? {
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(damaged(verdict));
        }
    }
    index_tenants(&connection)?;
    Ok(connection)
}

/// Marks the file as whole. The mark is void with the next check of whether the file can be written.
pub fn mark_closed(connection: &Connection) -> rusqlite::Result<()> {
    let checks: i32 = connection.query_row("SELECT checks FROM writable", [], |row| row.get(0))?;
    connection.pragma_update(None, "user_version", checks)
}

fn is_closed(connection: &Connection) -> rusqlite::Result<bool> {
    let query = "SELECT checks > 0 AND checks = user_version FROM writable, pragma_user_version()";
    connection.query_row(query, [], |row| row.get(0))
}

/// A file of an earlier version has no column for the tenant yet.
fn index_tenants(connection: &Connection) -> rusqlite::Result<()> {
    if !connection.column_exists(None, "records", "tenant")? {
        connection.execute_batch("ALTER TABLE records ADD COLUMN tenant TEXT NOT NULL DEFAULT ''")?;
    }
    let indexed =
        connection.execute_batch("CREATE INDEX IF NOT EXISTS records_of_tenant ON records (tenant, id)");
    match indexed {
        // The file can be drained without the index, which makes room.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
            warn!(error = chain(&error), "the disk has no room for an index of the spool");
            Ok(())
        }
        indexed => indexed,
    }
}

fn damaged(verdict: String) -> rusqlite::Error {
    let code = ffi::Error::new(ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(verdict))
}

/// Whether this means that the file is damaged.
#[must_use]
pub fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Whether this means that something can't be read: the file, or the disk below it, is damaged.
#[must_use]
pub fn is_unreadable(error: &rusqlite::Error) -> bool {
    let by_disk = [
        ffi::SQLITE_IOERR_READ,
        ffi::SQLITE_IOERR_SHORT_READ,
        ffi::SQLITE_IOERR_CORRUPTFS,
        ffi::SQLITE_IOERR_DATA,
    ];
    is_corrupt(error) || error.sqlite_error().is_some_and(|error| by_disk.contains(&error.extended_code))
}

/// Bytes within the file that deleted records have left.
pub fn unused_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let query = "SELECT freelist_count * page_size FROM pragma_freelist_count(), pragma_page_size()";
    let bytes: i64 = connection.prepare_cached(query)?.query_row([], |row| row.get(0))?;
    Ok(u64::try_from(bytes).unwrap_or_default())
}

/// Returns at most this many unused pages to the disk; false if that was the last of them, or there was none.
pub fn vacuum(connection: &Connection, pages: u32) -> rusqlite::Result<bool> {
    let before = unused_bytes(connection)?;
    // It does one page for each row that it is asked for.
    let mut vacuum = connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut done = vacuum.query([])?;
    while done.next()?.is_some() {}
    let unused = unused_bytes(connection)?;
    let is_more = (1..before).contains(&unused);
    if !is_more {
        connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
    }
    Ok(is_more)
}

/// Numbers the records that are appended from now on beyond `id`.
pub fn number_beyond(connection: &Connection, id: i64) -> rusqlite::Result<()> {
    let raised =
        connection.execute("UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = 'records'", [id])?;
    if raised == 0 {
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('records', ?1)", [id])?;
    }
    Ok(())
}

/// A record as it is in the table.
pub struct Row {
    /// The tenant it is for.
    pub tenant: String,
    /// When it was received first, in milliseconds since 1970.
    pub received_at_ms: i64,
    /// What is known of the webhook, as JSON.
    pub facts: String,
    /// The sender's bytes.
    pub body: Bytes,
}

impl Row {
    /// What is written of a webhook.
    #[must_use]
    pub fn of(webhook: &Webhook) -> Self {
        Self {
            tenant: webhook.metadata.tenant.clone(),
            received_at_ms: webhook.metadata.received_at_ms,
            // A struct of texts and numbers can always be written as JSON.
            facts: serde_json::to_string(&webhook.metadata).unwrap_or_default(),
            body: webhook.body.clone(),
        }
    }

    /// What it counts for, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.facts.len() + self.body.len()) as u64 + RECORD_OVERHEAD
    }

    /// What its checksum must be.
    #[must_use]
    pub fn checksum(&self) -> Vec<u8> {
        checksum(&self.facts, &self.body)
    }

    /// Writes it, and counts it.
    pub fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        let insert = "INSERT INTO records (tenant, received_at_ms, facts, body, checksum) \
                      VALUES (?1, ?2, ?3, ?4, ?5)";
        connection.prepare_cached(insert)?.execute(params![
            self.tenant,
            self.received_at_ms,
            self.facts,
            &self.body[..],
            self.checksum()
        ])?;
        connection
            .prepare_cached("UPDATE totals SET records = records + 1, bytes = bytes + ?1")?
            .execute([i64::try_from(self.bytes()).unwrap_or(i64::MAX)])?;
        Ok(())
    }
}

/// SQLite notices damage to its own structure, but not within a body. The length tells where the body begins.
fn checksum(facts: &str, body: &[u8]) -> Vec<u8> {
    let length = (facts.len() as u64).to_be_bytes();
    let hash = Sha256::new().chain_update(length).chain_update(facts).chain_update(body).finalize();
    hash[..8].to_vec()
}

/// The id of a record, and what it holds.
pub type Read = (i64, Option<Webhook>);

/// The tenants of which there are records. Jumps from one to the next in the index, however many records
/// there are.
pub fn tenants(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let query = "WITH RECURSIVE found (tenant) AS (
                     SELECT min(tenant) FROM records
                     UNION ALL
                     SELECT (SELECT min(tenant) FROM records WHERE tenant > found.tenant)
                     FROM found WHERE found.tenant IS NOT NULL)
                 SELECT tenant FROM found WHERE tenant IS NOT NULL";
    connection.prepare_cached(query)?.query_map([], |row| row.get(0))?.collect()
}

/// Enters the tenants of some records that an earlier version has written, behind the one called `id`, and
/// tells up to which; none if there are no more.
pub fn enter_tenants(connection: &mut Connection, id: i64) -> rusqlite::Result<Option<i64>> {
    let transaction = connection.transaction()?;
    let records = read_of(&transaction, "", id, ENTERED)?;
    let mut last = None;
    for (id, webhook) in records {
        last = Some(id);
        if let Some(webhook) = webhook {
            let enter = "UPDATE records SET tenant = ?1 WHERE id = ?2";
            transaction.prepare_cached(enter)?.execute(params![webhook.metadata.tenant, id])?;
        }
    }
    transaction.commit()?;
    Ok(last)
}

/// Reads the records behind the one called `id`; none stands for one whose checksum is wrong.
pub fn read(connection: &Connection, id: i64, limit: usize) -> rusqlite::Result<Vec<Read>> {
    let query = "SELECT id, facts, body, checksum FROM records WHERE id > ?1 ORDER BY id LIMIT ?2";
    let mut query = connection.prepare_cached(query)?;
    page(query.query(params![id, limit_of(limit)])?)
}

/// Reads the record called `id`.
pub fn read_one(connection: &Connection, id: i64) -> rusqlite::Result<Option<Read>> {
    let query = "SELECT id, facts, body, checksum FROM records WHERE id = ?1";
    let mut query = connection.prepare_cached(query)?;
    Ok(page(query.query([id])?)?.pop())
}

/// Reads the records of a tenant behind the one called `id`.
pub fn read_of(connection: &Connection, tenant: &str, id: i64, limit: usize) -> rusqlite::Result<Vec<Read>> {
    let query = "SELECT id, facts, body, checksum FROM records \
                 WHERE tenant = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
    let mut query = connection.prepare_cached(query)?;
    page(query.query(params![tenant, id, limit_of(limit)])?)
}

fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// As many rows as fit into memory together, and at least one.
fn page(mut rows: rusqlite::Rows<'_>) -> rusqlite::Result<Vec<Read>> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    while bytes < PAGE_BYTES
        && let Some(row) = rows.next()?
    {
        let (facts, body): (Vec<u8>, Vec<u8>) = (bytes_of(row, 1)?, bytes_of(row, 2)?);
        let stored: Vec<u8> = bytes_of(row, 3)?;
        bytes += body.len();
        page.push((row.get(0)?, webhook(&facts, body, &stored)));
    }
    Ok(page)
}

/// The bytes of a column, whatever type damage has given it.
pub fn bytes_of(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Vec<u8>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
        _ => Vec::new(),
    })
}

/// The webhook of which this was written; none if the checksum is wrong.
#[must_use]
pub fn webhook(facts: &[u8], body: Vec<u8>, stored: &[u8]) -> Option<Webhook> {
    let facts = std::str::from_utf8(facts).ok()?;
    if checksum(facts, &body) != stored {
        return None;
    }
    let metadata: Metadata = serde_json::from_str(facts).ok()?;
    Some(Webhook { metadata, body: body.into() })
}

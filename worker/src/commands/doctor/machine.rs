//! Looks at this machine, and at the public URL from here.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper::Method;
use hyper::header::HeaderMap;
use serde_json::Value;
use shared::telemetry::chain;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::facts::{Known, Public, Syncs};
use crate::commands::address::HttpAddress;
use crate::commands::http::{Http, HttpError};

/// Writes that are timed, and the bytes of each.
const WRITES: usize = 20;
const WRITE_BYTES: usize = 4096;
/// Longest wait for the disk, and for the public URL.
const DISK_TIMEOUT: Duration = Duration::from_secs(20);
const URL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long writes to a folder take until they are on disk; nothing, if there is no such folder.
pub async fn sync_times(folder: PathBuf) -> Option<Known<Syncs>> {
    if !folder.is_dir() {
        return None;
    }
    let timed = timeout(DISK_TIMEOUT, spawn_blocking(move || timed(&folder))).await;
    Some(match timed {
        Ok(Ok(times)) => times.map_err(|error| chain(&error)),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err(format!("no write ends within {} s", DISK_TIMEOUT.as_secs())),
    })
}

fn timed(folder: &Path) -> io::Result<Syncs> {
    let path = folder.join(format!("doctor-{}", std::process::id()));
    let times = timed_writes(&path);
    std::fs::remove_file(&path)?;
    let mut times = times?;
    times.sort();
    let of = |n: usize| times.get(n).copied().unwrap_or_default();
    Ok(Syncs { median: of(WRITES / 2), longest: of(WRITES - 1) })
}

fn timed_writes(path: &Path) -> io::Result<Vec<Duration>> {
    let mut file = File::create(path)?;
    let mut write = || {
        let started = Instant::now();
        file.write_all(&[0; WRITE_BYTES])?;
        file.sync_data()?;
        Ok::<_, io::Error>(started.elapsed())
    };
    (0..WRITES).map(|_| write()).collect()
}

/// What a public URL answers.
pub async fn ask(url: Option<&HttpAddress>) -> Option<Known<Public>> {
    let url = url?;
    let answer = timeout(URL_TIMEOUT, answer(url)).await;
    Some(match answer {
        Ok(answer) => answer.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no answer within {} s", URL_TIMEOUT.as_secs())),
    })
}

async fn answer(url: &HttpAddress) -> Result<Public, HttpError> {
    let http = Http::new(url.clone(), HeaderMap::new())?;
    let started = Instant::now();
    let answer = http.request(Method::GET, "/", String::new()).await?;
    let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
    Ok(Public {
        is_encrypted: url.is_encrypted,
        status: answer.status.as_u16(),
        is_ingest: body.is_some_and(|body| body["service"] == "penstock"),
        took: started.elapsed(),
    })
}

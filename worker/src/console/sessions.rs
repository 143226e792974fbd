//! The sessions of operators. In memory: when the console restarts, everybody logs in again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// A session ends this long after it began, and this long after its last request.
const LIFETIME: Duration = Duration::from_hours(12);
const IDLE_TIMEOUT: Duration = Duration::from_hours(1);
/// Sessions at the same time; a new one replaces the one that was unused for longest.
const MAX_SESSIONS: usize = 1000;
/// Bytes of randomness in a session's id and in its CSRF token.
const SECRET_BYTES: usize = 32;

/// An operator who has logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The name given at login.
    pub name: String,
    /// The token that each form that changes something must have.
    pub csrf: String,
}

#[derive(Debug)]
struct Session {
    operator: Operator,
    began: Instant,
    used: Instant,
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.began) >= LIFETIME || now.duration_since(self.used) >= IDLE_TIMEOUT
    }
}

/// The sessions, by their secret ids.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<String, Session>>);

impl Sessions {
    /// Begins a session and gives its id. Fails if the system has no randomness.
    pub fn begin(&self, name: String, now: Instant) -> Result<String, getrandom::Error> {
        let (id, csrf) = (secret()?, secret()?);
        let mut sessions = self.lock();
        sessions.retain(|_, session| !session.is_over(now));
        if sessions.len() >= MAX_SESSIONS {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| id.clone());
            oldest.and_then(|id| sessions.remove(&id));
        }
        let operator = Operator { name, csrf };
        sessions.insert(id.clone(), Session { operator, began: now, used: now });
        Ok(id)
    }

    /// Whose session this is, unless it has ended.
    pub fn operator(&self, id: &str, now: Instant) -> Option<Operator> {
        let mut sessions = self.lock();
        let session = sessions.get_mut(id).filter(|session| !session.is_over(now))?;
        session.used = now;
        Some(session.operator.clone())
    }

    /// Ends a session.
    pub fn end(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_when_it_is_idle_or_old_or_told_to() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let begin = |now| sessions.begin("Ada".into(), now).unwrap();
        let (idle, ended) = (begin(start), begin(start));
        assert_ne!(idle, ended);
        assert_eq!(sessions.operator(&idle, start).unwrap().name, "Ada");
        assert!(sessions.operator(&idle, start + IDLE_TIMEOUT).is_none());
        sessions.end(&ended);
        assert!(sessions.operator(&ended, start).is_none());
        let (busy, half) = (begin(start), IDLE_TIMEOUT / 2);
        let halves = 2 * LIFETIME.as_secs() / IDLE_TIMEOUT.as_secs();
        let is_there = |n: u64| {
            let n = u32::try_from(n).unwrap();
            sessions.operator(&busy, start + half * n).is_some()
        };
        assert!((1..halves).all(is_there) && !is_there(halves));
    }

    #[test]
    fn the_number_of_sessions_is_bounded() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let first = sessions.begin("first".into(), start).unwrap();
        let later = start + Duration::from_secs(1);
        for _ in 0..MAX_SESSIONS {
            sessions.begin("another".into(), later).unwrap();
        }
        assert!(sessions.operator(&first, later).is_none());
        assert_eq!(sessions.lock().len(), MAX_SESSIONS);
    }
}

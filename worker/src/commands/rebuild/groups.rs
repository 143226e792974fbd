//! Which events belong together, because documents depend on several of them. Pure.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::project::Wanted;

/// Events in groups: two events are in the same one if there is a document that both concern, or a chain of
/// such.
///
/// Takes some hundred bytes per event. Documents are known by a hash; if two should share one, their groups
/// become one, which does no harm.
#[derive(Debug, Default)]
pub struct Groups {
    events: Vec<(String, usize)>,
    parents: Vec<u32>,
    holders: HashMap<u64, u32>,
}

impl Groups {
    /// Adds an event of this size that concerns these documents, by the `_id` of its entry in the ledger.
    pub fn add(&mut self, id: String, bytes: usize, concerned: &Wanted) {
        let Ok(event) = u32::try_from(self.events.len()) else { return };
        self.events.push((id, bytes));
        self.parents.push(event);
        let Wanted { ledger: _, messages, unnamed_messages: _, conversations, contacts, notes, calls } =
            concerned;
        for (collection, ids) in [messages, conversations, contacts, notes, calls].into_iter().enumerate() {
            for id in ids {
                let mut hasher = DefaultHasher::new();
                (collection, id).hash(&mut hasher);
                let holder = *self.holders.entry(hasher.finish()).or_insert(event);
                self.join(holder, event);
            }
        }
    }

    /// Number of events.
    #[must_use]
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// The groups, several in one batch as long as that holds at most this many events and bytes.
    #[must_use]
    pub fn into_batches(mut self, most_events: usize, most_bytes: usize) -> Vec<Vec<Vec<String>>> {
        let mut groups: HashMap<u32, (Vec<String>, usize)> = HashMap::new();
        for (event, (id, bytes)) in (0..).zip(std::mem::take(&mut self.events)) {
            let (ids, total) = groups.entry(self.root(event)).or_default();
            ids.push(id);
            *total += bytes;
        }
        let (mut batches, mut batch, mut size) = (Vec::new(), Vec::new(), (0, 0));
        for (ids, bytes) in groups.into_values() {
            let larger = (size.0 + ids.len(), size.1 + bytes);
            if !batch.is_empty() && (larger.0 > most_events || larger.1 > most_bytes) {
                batches.push(std::mem::take(&mut batch));
                size = (ids.len(), bytes);
            } else {
                size = larger;
            }
            batch.push(ids);
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
        batches
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        if let Some(parent) = self.parents.get_mut(a.max(b) as usize) {
            *parent = a.min(b);
        }
    }

    fn root(&mut self, mut event: u32) -> u32 {
        loop {
            let parent = self.parents[event as usize];
            if parent == event {
                return event;
            }
            // Halves the way for the next time.
            let grandparent = self.parents[parent as usize];
            self.parents[event as usize] = grandparent;
            event = grandparent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(messages: &[&str], conversations: &[&str]) -> Wanted {
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        Wanted { messages: set(messages), conversations: set(conversations), ..Wanted::default() }
    }

    fn sorted(batches: Vec<Vec<Vec<String>>>) -> Vec<Vec<String>> {
        let mut groups: Vec<Vec<String>> = batches.into_iter().flatten().collect();
        groups.sort();
        groups
    }

    #[test]
    fn a_chain_of_documents_makes_a_group() {
        let mut groups = Groups::default();
        for (id, concerned) in [
            ("a", about(&["1"], &["x"])),
            ("b", about(&["2"], &["y"])),
            ("c", about(&["3"], &["z"])),
            ("d", about(&["y"], &["w"])),
            // The message of a moves to the conversation of b.
            ("e", about(&["1"], &["y"])),
        ] {
            groups.add(id.to_owned(), 1, &concerned);
        }
        assert_eq!(groups.events(), 5);
        assert_eq!(sorted(groups.into_batches(100, 100)), [vec!["a", "b", "e"], vec!["c"], vec!["d"]]);
    }

    #[test]
    fn batches_are_bounded_but_a_group_stays_whole() {
        let mut groups = Groups::default();
        for n in 0..10 {
            let chat = if n < 6 { "large".to_owned() } else { n.to_string() };
            groups.add(n.to_string(), 10, &about(&[&n.to_string()], &[&chat]));
        }
        let batches = groups.into_batches(3, 20);
        assert!(
            batches.iter().all(|batch| batch.len() == 1 || batch.iter().map(Vec::len).sum::<usize>() <= 2)
        );
        assert_eq!(sorted(batches).iter().map(Vec::len).max(), Some(6));
    }
}

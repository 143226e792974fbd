//! Which events belong together, because documents depend on several of them. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::project::Wanted;

/// Events in groups: two events are in the same one if there is a document that both concern, or a chain of
/// such.
///
/// Takes some hundred bytes per event. Documents are known by a hash; if two should share one, their groups
/// become one, which does no harm.
#[derive(Debug, Default)]
pub struct Groups {
    /// Number, `_id` and size of each.
    events: Vec<(u32, String, usize)>,
    /// By an event's number, one of the same group; the root of a group has its own.
    parents: Vec<u32>,
    /// By a document's hash, an event that concerns it.
    holders: HashMap<u64, u32>,
}

/// Documents, by their hashes.
#[derive(Debug)]
pub struct DocumentSet(HashSet<u64>);

impl DocumentSet {
    /// Whether one of these is among them.
    #[must_use]
    pub fn has_any(&self, concerned: &Wanted) -> bool {
        hashes(concerned).iter().any(|hash| self.0.contains(hash))
    }
}

impl Groups {
    /// Adds an event of this size that concerns these documents, by the `_id` of its entry in the ledger.
    pub fn add(&mut self, id: String, bytes: usize, concerned: &Wanted) {
        let Ok(event) = u32::try_from(self.parents.len()) else { return };
        self.events.push((event, id, bytes));
        self.parents.push(event);
        for hash in hashes(concerned) {
            let holder = *self.holders.entry(hash).or_insert(event);
            self.join(holder, event);
        }
    }

    /// Leaves out each group that has none of these events, and says which documents the others concern.
    pub fn narrow(&mut self, chosen: &BTreeSet<String>) -> DocumentSet {
        let is_chosen = |(_, id, _): &&(u32, String, usize)| chosen.contains(id);
        let chosen: Vec<u32> = self.events.iter().filter(is_chosen).map(|(event, ..)| *event).collect();
        let roots: HashSet<u32> = chosen.into_iter().map(|event| self.root(event)).collect();
        let mut events = std::mem::take(&mut self.events);
        events.retain(|(event, ..)| roots.contains(&self.root(*event)));
        self.events = events;
        let holders = std::mem::take(&mut self.holders).into_iter();
        DocumentSet(
            holders.filter(|(_, event)| roots.contains(&self.root(*event))).map(|(hash, _)| hash).collect(),
        )
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
        for (event, id, bytes) in std::mem::take(&mut self.events) {
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

fn hashes(concerned: &Wanted) -> Vec<u64> {
    let Wanted { ledger: _, messages, unnamed_messages: _, conversations, contacts, notes, calls } =
        concerned;
    let collections = [messages, conversations, contacts, notes, calls].into_iter().enumerate();
    let documents = collections.flat_map(|(collection, ids)| ids.iter().map(move |id| (collection, id)));
    documents
        .map(|document| {
            let mut hasher = DefaultHasher::new();
            document.hash(&mut hasher);
            hasher.finish()
        })
        .collect()
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
    fn only_the_groups_of_chosen_events_are_left() {
        let mut groups = Groups::default();
        for (id, concerned) in [
            ("a", about(&["1"], &["x"])),
            ("b", about(&["2"], &["y"])),
            ("c", about(&["3"], &["x"])),
            ("d", about(&["4"], &["z"])),
        ] {
            groups.add(id.to_owned(), 1, &concerned);
        }
        let documents = groups.narrow(&["c".to_owned(), "unknown".to_owned()].into());
        assert_eq!(groups.events(), 2);
        assert!(documents.has_any(&about(&["1"], &[])) && documents.has_any(&about(&["9"], &["x"])));
        assert!(!documents.has_any(&about(&["2"], &["y"])) && !documents.has_any(&about(&["x"], &["1"])));
        assert_eq!(sorted(groups.into_batches(100, 100)), [vec!["a", "c"]]);
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

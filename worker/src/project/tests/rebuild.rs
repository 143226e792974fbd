//! Documents computed anew are what they were.

use proptest::prelude::*;

use super::order::arrivals;
use super::*;
use crate::commands::rebuild::groups::Groups;
use crate::project::Stamp;
use crate::project::essential::Essential;
use crate::project::neighbours::{MESSAGES_COUNTED_BY, NOTES_COUNTED_BY, Neighbours};
use crate::project::rebuild::Shared;
use crate::project::stamp::MERGE_FIELD;

impl Database {
    /// The events that the ledger has.
    pub(super) fn events(&self) -> Vec<Event> {
        self.ledger.0.values().map(|entry| ledger::event("t", entry).unwrap()).collect()
    }

    /// Loads, computes anew and writes as the store does.
    pub(super) fn rebuild(&mut self, events: &[Event], horizon: i64) {
        let now = DateTime::from_millis(RECEIVED + 1_000_000);
        let mut documents = self.load(events);
        documents.ledger = Table::default();
        let mut chats = Wanted::by(events).conversations;
        chats.extend(documents.previous_conversations());
        let neighbours = self.neighbours(&documents, &chats);
        documents.rebuild(events, &neighbours, DateTime::from_millis(horizon), now);
        self.save(&documents, now);
    }

    /// The same in parts, as it is done with many events of a conversation.
    pub(super) fn rebuild_in_parts(&mut self, horizon: i64) {
        let (now, horizon) = (DateTime::from_millis(RECEIVED + 1_000_000), DateTime::from_millis(horizon));
        let events: Vec<(String, Event)> = self
            .ledger
            .0
            .iter()
            .map(|(id, entry)| (id.clone(), ledger::event("t", entry).unwrap()))
            .collect();
        let (mut own, mut essential, mut shared) =
            (Groups::default(), Essential::default(), Shared::default());
        for page in events.chunks(3) {
            for (id, event) in page {
                let (key, body) = Stamp::of(event).event();
                shared.told_by.insert((key.to_owned(), body.to_owned()));
                let mut concerned = Wanted::by(std::slice::from_ref(event));
                shared.conversations.append(&mut concerned.conversations);
                let concerned = concerned.own();
                if concerned.concerns_documents() {
                    own.add(id.clone(), 1, &concerned);
                }
            }
            essential.add(page.to_vec());
        }
        let of = |ids: Vec<String>| -> Vec<Event> {
            let is_meant = |(id, _): &&(String, Event)| ids.contains(id);
            events.iter().filter(is_meant).map(|(_, event)| event.clone()).collect()
        };
        for batch in own.into_batches(2, 2) {
            let events = of(batch.concat());
            let mut documents = self.load(&events);
            documents.ledger = Table::default();
            documents.rebuild_own(&events, horizon, now);
            let ids = documents.conversations.iter().filter_map(|conversation| conversation.text("_id"));
            shared.conversations.extend(ids.map(str::to_owned));
            self.save(&documents, now);
        }
        let events = of(essential.into_ids());
        let mut documents = self.load(&events);
        documents.ledger = Table::default();
        documents.let_go_of_own();
        self.conversations.find(&shared.conversations, None, &mut documents.conversations);
        let neighbours = self.neighbours(&documents, &shared.conversations);
        documents.rebuild_shared(&events, &shared, &neighbours, horizon, now);
        self.save(&documents, now);
    }

    fn neighbours(&self, documents: &Documents, chats: &BTreeSet<String>) -> Neighbours {
        let in_chats = |collection: &Collection, fields: &[&str], known: &Table| -> Vec<Document> {
            let is_in = |document: &&Document| {
                document.get_str("chat_id").is_ok_and(|chat_id| chats.contains(chat_id))
                    && !known.has(record(document).get("_id").unwrap())
            };
            let tops: BTreeSet<_> = fields.iter().map(|name| name.split('.').next().unwrap()).collect();
            let cut = |document: &Document| {
                let kept = document.iter().filter(|(name, _)| *name == "_id" || tops.contains(name.as_str()));
                kept.map(|(name, value)| (name.clone(), value.clone())).collect()
            };
            collection.0.values().filter(is_in).map(cut).collect()
        };
        let mut neighbours = Neighbours::default();
        for message in in_chats(&self.messages, &MESSAGES_COUNTED_BY, &documents.messages) {
            neighbours.add_message(&record(&message));
        }
        for note in in_chats(&self.notes, &NOTES_COUNTED_BY, &documents.notes) {
            neighbours.add_note(&record(&note));
        }
        neighbours
    }

    pub(super) fn collections(&mut self) -> [&mut Collection; 5] {
        let Self { messages, conversations, contacts, notes, calls, .. } = self;
        [messages, conversations, contacts, notes, calls]
    }
}

/// What somebody may do to documents by hand.
#[derive(Clone, Debug)]
enum Damage {
    /// Deletes a document.
    Delete,
    /// Takes a field away.
    Unset(prop::sample::Index),
    /// Sets a field to something else.
    Set(prop::sample::Index),
}

fn damages() -> impl Strategy<Value = Vec<(usize, prop::sample::Index, Damage)>> {
    let damage = prop_oneof![
        Just(Damage::Delete),
        any::<prop::sample::Index>().prop_map(Damage::Unset),
        any::<prop::sample::Index>().prop_map(Damage::Set),
    ];
    prop::collection::vec((0..5_usize, any::<prop::sample::Index>(), damage), 1..12)
}

fn harm(database: &mut Database, collection: usize, which: prop::sample::Index, damage: &Damage) {
    let documents = &mut database.collections()[collection].0;
    if documents.is_empty() {
        return;
    }
    let id = documents.keys().nth(which.index(documents.len())).unwrap().clone();
    let document = documents.get_mut(&id).unwrap();
    let is_anothers = Stamp::is_on(&record(document), "created_at") || !document.contains_key(MERGE_FIELD);
    if is_anothers && !matches!(damage, Damage::Delete) {
        // It isn't known when we first stored this, or whether we did: parts that no event has set may be
        // another's.
        return;
    }
    // The other by which it is known whether the ledger has all of a document, and who has set what.
    let names: Vec<_> = document
        .keys()
        .filter(|name| !matches!(name.as_str(), "_id" | "created_at" | "_merge"))
        .cloned()
        .collect();
    match damage {
        Damage::Delete => drop(documents.remove(&id)),
        Damage::Unset(field) => drop(document.remove(&names[field.index(names.len())])),
        Damage::Set(field) => drop(document.insert(names[field.index(names.len())].clone(), "garbage")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_is_as_it_should_be_stays((_, batches) in arrivals()) {
        let before = order::after(&batches);
        let mut after = before.clone();
        after.rebuild(&before.events(), RECEIVED);
        prop_assert_eq!(after, before);
    }

    #[test]
    fn damage_is_mended((_, batches) in arrivals(), damages in damages()) {
        let before = order::after(&batches);
        let mut after = before.clone();
        for (collection, which, damage) in &damages {
            harm(&mut after, *collection, *which, damage);
        }
        after.rebuild(&before.events(), RECEIVED);
        let (mut before, mut after) = (before.timeless(), after.timeless());
        for (before, after) in before.collections().into_iter().zip(after.collections()) {
            prop_assert_eq!(before.ids(), after.ids());
            for (id, document) in &before.0 {
                prop_assert_eq!(document, &after.0[id]);
            }
        }
    }

    #[test]
    fn damage_is_mended_in_parts_too((_, batches) in arrivals(), damages in damages()) {
        let before = order::after(&batches);
        let mut after = before.clone();
        for (collection, which, damage) in &damages {
            harm(&mut after, *collection, *which, damage);
        }
        after.rebuild_in_parts(RECEIVED);
        let (mut before, mut after) = (before.timeless(), after.timeless());
        for (before, after) in before.collections().into_iter().zip(after.collections()) {
            prop_assert_eq!(&before.0, &after.0);
        }
    }

    #[test]
    fn after_events_have_expired_it_comes_to_the_same_in_parts((_, batches) in arrivals(), expired in 0..8_i64) {
        let mut whole = order::after(&batches);
        let horizon = RECEIVED + expired;
        whole.ledger.0.retain(|_, entry| {
            entry.get_datetime("stored_at").unwrap().timestamp_millis() >= horizon
        });
        let mut parts = whole.clone();
        whole.rebuild(&whole.events(), horizon);
        parts.rebuild_in_parts(horizon);
        prop_assert_eq!(parts.timeless(), whole.timeless());
    }

    #[test]
    fn what_expired_events_have_left_stays((_, batches) in arrivals(), expired in 0..8_i64) {
        let mut before = order::after(&batches);
        let horizon = RECEIVED + expired;
        before.ledger.0.retain(|_, entry| {
            entry.get_datetime("stored_at").unwrap().timestamp_millis() >= horizon
        });
        let mut after = before.clone();
        after.rebuild(&before.events(), horizon);
        prop_assert_eq!(after.timeless(), before.timeless());
    }

    #[test]
    fn what_was_stored_after_the_ledger_was_read_stays_or_is_applied_again((_, batches) in arrivals(), read in 0..8_usize) {
        let early = order::after(&batches[..read.min(batches.len())]);
        let before = order::after(&batches);
        let mut after = before.clone();
        // Each group by itself would see the same, but all of it is simpler.
        after.rebuild(&early.events(), RECEIVED);
        let caught_up = before.events();
        let mut documents = after.load(&caught_up);
        documents.ledger = Table::default();
        for event in &caught_up {
            documents.effects(event, DateTime::from_millis(RECEIVED));
        }
        after.save(&documents, DateTime::from_millis(RECEIVED));
        let (mut before, mut after) = (before.timeless(), after.timeless());
        for (before, after) in before.collections().into_iter().zip(after.collections()) {
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn applied_once_more_events_change_nothing((events, batches) in arrivals()) {
        let database = order::after(&batches);
        let mut documents = database.load(&events);
        let now = DateTime::from_millis(0);
        for event in &database.events() {
            documents.effects(event, now);
        }
        prop_assert_eq!(writes(&documents, now), <[Writes; 6]>::default());
    }
}

//! `list` and `show`.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lapin::message::BasicGetMessage;
use serde_json::json;
use shared::table::{self, Table};

use super::message::{self, SetAside};
use super::queue::Queue;
use super::{Action, Chosen, Kind, Selection, Work};
use crate::commands::{CommandError, printable, say};

impl Work<'_> {
    pub(super) async fn look(
        &self,
        queue: &mut Queue,
        selection: &Selection,
        table: &mut Table<7>,
        lines: &mut u64,
        out: &mut impl Write,
    ) -> Result<(), CommandError> {
        let mut chosen = Chosen::new(self.tenant, &selection.filter, queue, !io::stdout().is_terminal());
        let mut met = Met::default();
        while let Some((letter, message)) = chosen.next(queue).await? {
            if self.kind == Kind::Dead && !met.is_first(&letter) {
                continue;
            }
            *lines += 1;
            match (self.action == Action::Show, selection.json) {
                (false, false) => say(out, table.row(&letter.cells()))?,
                (false, true) => say(out, json!(letter))?,
                (true, false) => say(out, shown(&letter, &message))?,
                (true, true) => say(out, shown_as_json(&letter, &message))?,
            }
        }
        Ok(())
    }
}

/// Event keys so far. If a worker published a dead letter and the confirm was lost, it has rejected the
/// delivery, and RabbitMQ has made a second dead letter. The list shows the two as one.
#[derive(Debug, Default)]
struct Met(HashSet<String>);

impl Met {
    fn is_first(&mut self, letter: &SetAside) -> bool {
        letter.key.as_ref().is_none_or(|key| self.0.insert(key.clone()))
    }
}

fn shown(letter: &SetAside, message: &BasicGetMessage) -> String {
    let headers = message::headers(&message.properties).into_iter();
    let headers: String =
        headers.map(|(name, value)| printable(&format!("  {name}: {value}")) + "\n").collect();
    let body: Vec<_> = String::from_utf8_lossy(&message.data).lines().map(printable).collect();
    let line = table::line(&message::COLUMNS, &letter.cells());
    format!("{line}\n{headers}\n{}\n", body.join("\n"))
}

fn shown_as_json(letter: &SetAside, message: &BasicGetMessage) -> serde_json::Value {
    let mut shown = json!(letter);
    shown["headers"] = message::headers(&message.properties).into();
    match std::str::from_utf8(&message.data) {
        Ok(body) => shown["body"] = body.into(),
        Err(_) => shown["body_base64"] = STANDARD.encode(&message.data).into(),
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_letters_of_one_event_are_one() {
        let letter = |key: Option<&str>| SetAside { key: key.map(str::to_owned), ..SetAside::default() };
        let mut met = Met::default();
        let mut is_first = |key| met.is_first(&letter(key));
        assert_eq!([is_first(Some("a")), is_first(Some("b")), is_first(Some("a"))], [true, true, false]);
        assert_eq!([is_first(None), is_first(None)], [true, true], "who knows");
    }
}

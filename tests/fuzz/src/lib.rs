//! What must hold whatever is sent. libFuzzer breeds the input, see `tests/fuzz/run`; a target makes
//! something of it and checks what comes of that.
#![expect(clippy::missing_panics_doc, reason = "a target panics when it has found something")]

pub mod body;
pub mod projection;
pub mod signature;
pub mod spool;

/// A target. Says whether the input is worth breeding from.
pub type Target = fn(&[u8]) -> bool;

/// Every target, by name.
pub const TARGETS: [(&str, Target); 4] = [
    ("body", body::target),
    ("projection", projection::target),
    ("signature", signature::target),
    ("spool", spool::target),
];

/// The lines of an input, at most `count` of them, the last with all that is left.
fn lines(input: &[u8], count: usize) -> impl Iterator<Item = &[u8]> {
    input.splitn(count, |byte| *byte == b'\n')
}

/// A byte that decides several things.
struct Choices(u8);

impl Choices {
    fn among<const N: usize, T>(&mut self, choices: [T; N]) -> Option<T> {
        let count = u8::try_from(N).ok()?;
        let chosen = choices.into_iter().nth(usize::from(self.0 % count));
        self.0 /= count;
        chosen
    }
}

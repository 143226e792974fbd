//! What documents become when events are applied to them. Pure: no I/O, no clock.
//!
//! The result depends neither on the order of the events nor on how they are cut into batches. Each part
//! of a document belongs to the latest event that sets it ([`Stamp`]), counts follow from which
//! documents exist, and an event that is in the ledger already changes nothing.
//!
//! The files form layers; each uses only the layers before it, and no two files use each other:
//! 1. values and documents: [`convert`], [`record`], [`table`], [`documents`];
//! 2. what all documents share: [`stamp`], [`bridge`], [`ledger`];
//! 3. one file per collection, and their parts: [`call`]; [`tags`], then [`contact`]; [`counted`],
//!    [`conversation`], [`returned`], [`content`], then [`message`] and [`note`];
//! 4. all together: [`wanted`], [`apply`]; [`neighbours`], [`recount`], then [`rebuild`].

pub mod apply;
pub mod bridge;
pub mod call;
pub mod contact;
pub mod content;
pub mod conversation;
pub mod convert;
pub mod counted;
pub mod documents;
pub mod essential;
pub mod ledger;
pub mod message;
pub mod neighbours;
pub mod note;
pub mod rebuild;
pub mod record;
pub mod recount;
pub mod returned;
pub mod stamp;
pub mod status;
pub mod table;
pub mod tags;
pub mod wanted;

pub use documents::Documents;
pub use ledger::Outcome;
pub use stamp::Stamp;
pub use wanted::Wanted;

#[cfg(test)]
mod tests;

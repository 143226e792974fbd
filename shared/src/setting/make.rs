//! How a setting of the table is written.

use super::{Kind, Reader, Setting};

/// One that takes any text.
pub(super) const fn text(
    name: &'static str,
    reader: Reader,
    default: Option<&'static str>,
    meaning: &'static str,
) -> Setting {
    Setting {
        name,
        reader,
        kind: Kind::Text,
        default,
        unit: "",
        is_secret: false,
        is_per_tenant: false,
        meaning,
    }
}

/// One that takes a number of this range.
pub(super) const fn number(
    name: &'static str,
    reader: Reader,
    default: &'static str,
    (from, to): (u64, u64),
    meaning: &'static str,
) -> Setting {
    let kind = Kind::Number { from, to };
    Setting { kind, ..text(name, reader, Some(default), meaning) }
}

/// One that takes a duration of this range.
pub(super) const fn duration(
    name: &'static str,
    reader: Reader,
    default: &'static str,
    (from, to): (&'static str, &'static str),
    meaning: &'static str,
) -> Setting {
    let kind = Kind::Duration { from, to, bare_seconds: false };
    Setting { kind, ..text(name, reader, Some(default), meaning) }
}

/// The same, whose number counts something.
pub(super) const fn counting(unit: &'static str, setting: Setting) -> Setting {
    Setting { unit, ..setting }
}

/// The same, which each tenant has.
pub(super) const fn of_tenant(setting: Setting) -> Setting {
    Setting { is_per_tenant: true, ..setting }
}

/// The same, which nobody may see.
pub(super) const fn secret(setting: Setting) -> Setting {
    Setting { is_secret: true, ..setting }
}

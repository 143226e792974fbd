//! The table of settings in each binary's README is written from ours.

use super::{Binary, Kind, SETTINGS, Setting};

/// The table of a binary.
fn table(binary: Binary) -> String {
    let rows: Vec<String> = SETTINGS.iter().filter(|setting| setting.is_read_by(binary)).map(row).collect();
    format!("| name | default | values | meaning |\n|---|---|---|---|\n{}\n", rows.join("\n"))
}

fn row(setting: &Setting) -> String {
    let Setting { name, default, meaning, .. } = setting;
    let name = if setting.is_per_tenant { format!("`{name}`, `VIP_{name}`") } else { format!("`{name}`") };
    let default = default.map(|default| format!("`{default}`")).unwrap_or_default();
    let values = match setting.kind {
        Kind::Text => String::new(),
        Kind::Flag => "`true`, `false`".to_owned(),
        Kind::Number { from, to } => format!("{from} to {to} {}", setting.unit),
        Kind::Duration { from, to, .. } if setting.unit.is_empty() => format!("`{from}` to `{to}`"),
        Kind::Duration { from, to, .. } => format!("`{from}` to `{to}`; {}", setting.unit),
    };
    let secret = if setting.is_secret { " (secret)" } else { "" };
    format!("| {name} | {default} | {} | {meaning}{secret} |", values.trim_end())
}

/// What the table stands between.
const MARKS: (&str, &str) = ("<!-- settings: begin -->\n", "<!-- settings: end -->\n");

/// To write the tables: `PENSTOCK_WRITE_README=1 cargo test -p shared readme`.
#[test]
fn each_readme_shows_the_settings() {
    for (binary, path) in [(Binary::Ingest, "../ingest/README.md"), (Binary::Worker, "../worker/README.md")] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let readme = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = readme.split_once(MARKS.0).expect("the first mark");
        let (_, after) = rest.split_once(MARKS.1).expect("the second mark");
        let expected = [before, MARKS.0, &table(binary), MARKS.1, after].concat();
        if std::env::var_os("PENSTOCK_WRITE_README").is_some() {
            std::fs::write(path, &expected).unwrap();
        } else {
            assert!(readme == expected, "run: PENSTOCK_WRITE_README=1 cargo test -p shared readme");
        }
    }
}

#[test]
fn every_default_is_a_value() {
    for setting in SETTINGS {
        let refused = setting.default.and_then(|default| setting.kind.refuses(default));
        assert_eq!(refused, None, "{}", setting.name);
    }
}

#[test]
fn every_setting_of_a_binary_is_there_once() {
    for binary in [Binary::Ingest, Binary::Worker] {
        let mut names: Vec<_> = SETTINGS.iter().filter(|s| s.is_read_by(binary)).map(|s| s.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}

//! Tables for a terminal: a heading, then rows.

use std::mem::take;

use crate::text::printable;

/// What is said in the place of rows, where there are none.
pub const NONE: &str = "none";

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    heading: &'static str,
    width: usize,
    is_number: bool,
}

impl Column {
    /// A column of texts. Most are no wider than this.
    #[must_use]
    pub const fn text(heading: &'static str, width: usize) -> Self {
        Self { heading, width, is_number: false }
    }

    /// A column of numbers, which stand at its right.
    #[must_use]
    pub const fn number(heading: &'static str, width: usize) -> Self {
        Self { heading, width, is_number: true }
    }
}

/// A table that is written row by row, as rows are found. So the widest isn't known: what is wider than its
/// column moves the rest of its row.
#[derive(Debug)]
pub struct Table<const N: usize> {
    columns: [Column; N],
    is_empty: bool,
}

impl<const N: usize> Table<N> {
    /// A table with these columns.
    #[must_use]
    pub const fn new(columns: [Column; N]) -> Self {
        Self { columns, is_empty: true }
    }

    /// A row, below the heading if it is the first.
    pub fn row(&mut self, cells: &[impl AsRef<str>; N]) -> String {
        let heading = if take(&mut self.is_empty) { heading(&self.columns) + "\n" } else { String::new() };
        heading + &line(&self.columns, cells)
    }
}

/// The heading of a table with these columns.
#[must_use]
pub fn heading<const N: usize>(columns: &[Column; N]) -> String {
    line(columns, &columns.map(|column| column.heading))
}

/// A row of such a table, alone.
#[must_use]
pub fn line<const N: usize>(columns: &[Column; N], cells: &[impl AsRef<str>; N]) -> String {
    let padded = columns.iter().zip(cells).map(|(Column { width, is_number, .. }, cell)| {
        let cell = cell.as_ref();
        if *is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
    });
    printable(padded.collect::<Vec<_>>().join("  ").trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_below_one_heading() {
        let mut table =
            Table::new([Column::text("KEY", 5), Column::number("BYTES", 6), Column::text("ERROR", 0)]);
        assert_eq!(table.row(&["a", "17", ""]), "KEY     BYTES  ERROR\na          17");
        assert_eq!(table.row(&["longer", "1", "x\u{1b}"]), "longer       1  x\\u{1b}");
    }
}

//! How answers look to people: tables, colours, and texts of others that a terminal must not obey. PURE.
//!
//! Names of nodes and pods, aliases of links and bytes of packets come from anywhere. A terminal acts on control
//! characters in what it is given to show, so none of theirs gets there; nor do those that turn the direction of writing,
//! with which one name can look like another.

use std::fmt::Write;

/// A text of somebody else's, safe to be shown on one line: control characters and those that change the direction of
/// writing are shown by their number.
pub fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_active(character) {
            // Writing to a String cannot fail.
            let _ = write!(safe, "\\u{{{:x}}}", u32::from(character));
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Whether a terminal may do something else with a character than show it.
fn is_active(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}')
}

/// The same for a JSON text, in JSON's own form. Between its strings stand no such characters but line ends.
pub fn harmless_json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_active(character) && character != '\n' {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(character);
        }
    }
    safe
}

/// What a word tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing of its own.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Somebody should look.
    Warning,
    /// Something is broken.
    Bad,
    /// A heading.
    Strong,
    /// Of less weight.
    Faint,
}

/// Whether words are coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// Only where a terminal shows them, and NO_COLOR is not set.
    pub colour: bool,
}

impl Style {
    /// The text in its tone. The text is to be harmless.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "1;31",
            Tone::Strong => "1",
            Tone::Faint => "2",
            Tone::Plain => return text.to_owned(),
        };
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// A cell of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A text, which is made harmless; `-` for an empty one.
    pub fn new(text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        Self { text: if text.is_empty() { "-".to_owned() } else { harmless(text) }, tone: Tone::Plain }
    }

    /// In that tone.
    #[must_use]
    pub fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// Rows under headings, in columns.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these headings, in capitals.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(|heading| Cell::new(heading).tone(Tone::Faint)).to_vec()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Whether it has no row but the headings.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// Each row a line, with two spaces between columns.
    pub fn text(&self, style: Style) -> String {
        let width = |cell: &Cell| cell.text.chars().count();
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(width).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            let last = row.len().saturating_sub(1);
            for (column, (cell, wide)) in row.iter().zip(&widths).enumerate() {
                line.push_str(&style.paint(cell.tone, &cell.text));
                if column < last {
                    let spaces = wide.saturating_sub(width(cell)) + 2;
                    line.extend(std::iter::repeat_n(' ', spaces));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A duration in the largest unit that leaves a number to read: `850 ms`, `12 s`, `3 h`.
pub fn duration(time: std::time::Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 if time.as_micros() < 1000 => format!("{} µs", time.as_micros()),
        0 => format!("{} ms", time.as_millis()),
        1..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_line_up_and_colours_do_not_count() {
        let mut table = Table::new(["NODE", "STATE"]);
        table.row(["a".into(), Cell::new("reached").tone(Tone::Good)]);
        table.row(["a-long-one".into(), "".into()]);
        assert_eq!(table.text(Style::default()), "NODE        STATE\na           reached\na-long-one  -\n");
        let coloured = table.text(Style { colour: true });
        assert!(coloured.contains("a           \u{1b}[32mreached\u{1b}[0m\n"), "{coloured:?}");
    }

    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\n\u{9b}31m\u{202e}x"), "a\\u{1b}[2Jb\\u{a}\\u{9b}31m\\u{202e}x");
        let json = serde_json::to_string_pretty(&["\u{9b}31m\u{7f}\u{1b}\u{e0001}"]).unwrap();
        let safe = harmless_json(&json);
        assert_eq!(safe, "[\n  \"\\u009b31m\\u007f\\u001b\\udb40\\udc01\"\n]");
        assert_eq!(serde_json::from_str::<Vec<String>>(&safe).unwrap(), ["\u{9b}31m\u{7f}\u{1b}\u{e0001}"]);
    }

    #[test]
    fn durations_are_short() {
        let texts =
            [3, 2500, 90_000, 1_000_000, 90_000_000].map(|millis| duration(Duration::from_millis(millis)));
        assert_eq!(texts, ["3 ms", "2 s", "90 s", "16 min", "25 h"]);
        assert_eq!(duration(Duration::from_micros(180)), "180 µs");
    }

    proptest! {
        #[test]
        fn no_text_has_an_active_character_left(text in any::<String>()) {
            prop_assert!(!harmless(&text).chars().any(is_active));
        }
    }
}

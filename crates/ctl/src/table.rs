//! Tables without lines: columns two spaces apart, as wide as they need on a pipe,
//! wrapped to the terminal's width on a terminal.

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width,
    presets,
};

use crate::console::Console;

/// Spaces between two columns.
const GAP: u16 = 2;

/// A column's head, and on which side its cells stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) right: bool,
}

/// A column of words.
pub(crate) const fn words(title: &'static str) -> Column {
    Column {
        title,
        right: false,
    }
}

/// A column of figures.
pub(crate) const fn figures(title: &'static str) -> Column {
    Column { title, right: true }
}

/// How a cell or a word should strike the eye. Never the only carrier of a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Careful,
    Bad,
}

/// A cell.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    content: String,
    tone: Tone,
}

impl Text {
    pub(crate) fn toned(content: impl Into<String>, tone: Tone) -> Self {
        Self {
            content: content.into(),
            tone,
        }
    }
}

impl<T: ToString> From<T> for Text {
    fn from(content: T) -> Self {
        Self::toned(content.to_string(), Tone::Plain)
    }
}

/// Columns and rows; every row has a cell for each column.
#[derive(Debug)]
pub(crate) struct Grid {
    columns: Vec<Column>,
    rows: Vec<Vec<Text>>,
}

impl Grid {
    pub(crate) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self {
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl Into<Vec<Text>>) {
        self.rows.push(cells.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How wide each column would like to be, its head included.
    pub(crate) fn widths(&self) -> Vec<u16> {
        self.table(true, false).column_max_content_widths()
    }

    /// Leaves out the column with this title, if there is one.
    pub(crate) fn remove_column(&mut self, title: &str) {
        let Some(index) = self.columns.iter().position(|column| column.title == title) else {
            return;
        };
        self.columns.remove(index);
        for row in &mut self.rows {
            row.remove(index);
        }
    }

    /// Leaves out columns, the first of these titles first, until the rest fits the
    /// terminal with no cell wrapped. Returns those left out.
    pub(crate) fn fit(
        &mut self,
        width: Option<u16>,
        least_first: &[&'static str],
    ) -> Vec<&'static str> {
        self.leave_out(width, least_first, Self::widths)
    }

    /// The same, but cells may wrap between words.
    pub(crate) fn fit_wrapped(&mut self, width: Option<u16>, least_first: &[&'static str]) {
        self.leave_out(width, least_first, Self::longest_words);
    }

    /// The lines, each with a newline.
    pub(crate) fn render(&self, console: &Console<'_>) -> String {
        self.render_part(console, true, &[])
    }

    /// As a later part of a longer table: perhaps without the head, and with columns
    /// at least as wide as they were before.
    pub(crate) fn render_part(
        &self,
        console: &Console<'_>,
        head: bool,
        at_least: &[u16],
    ) -> String {
        let mut table = self.table(head, console.colour);
        widen(&mut table, at_least);
        if let Some(width) = console.width {
            table.set_width(width);
            table.set_content_arrangement(ContentArrangement::Dynamic);
            let words = self.longest_words();
            let wraps = total_width(&self.widths()) > width.into();
            if wraps && total_width(&words) <= width.into() {
                widen(&mut table, &words);
            }
        }
        table.trim_fmt() + "\n"
    }

    /// How wide each column must be so that no word is cut: an address that is cut
    /// cannot be copied.
    fn longest_words(&self) -> Vec<u16> {
        let longest = |text: &str| {
            let words = text.split(' ').map(|word| word.chars().count());
            u16::try_from(words.max().unwrap_or(0)).unwrap_or(u16::MAX)
        };
        let mut widths: Vec<u16> = self
            .columns
            .iter()
            .map(|column| longest(column.title))
            .collect();
        for row in &self.rows {
            for (width, text) in widths.iter_mut().zip(row) {
                *width = longest(&text.content).max(*width);
            }
        }
        widths
    }

    fn leave_out(
        &mut self,
        width: Option<u16>,
        least_first: &[&'static str],
        widths: fn(&Self) -> Vec<u16>,
    ) -> Vec<&'static str> {
        let mut left_out = Vec::new();
        for &title in least_first {
            if width.is_none_or(|width| total_width(&widths(self)) <= width.into()) {
                break;
            }
            self.remove_column(title);
            left_out.push(title);
        }
        left_out
    }

    fn table(&self, head: bool, colour: bool) -> Table {
        let mut table = Table::new();
        // The console has looked at the terminal already, and decides alone.
        table.force_no_tty().load_style(presets::NOTHING);
        if colour {
            table.enforce_styling();
        }
        if head {
            let titles = self.columns.iter().map(|column| {
                let cell = Cell::new(column.title);
                if colour {
                    cell.add_attribute(Attribute::Bold)
                } else {
                    cell
                }
            });
            table.set_header(titles.collect::<Vec<_>>());
        }
        for row in &self.rows {
            table.add_row(row.iter().map(cell).collect::<Vec<_>>());
        }
        for (index, column) in self.columns.iter().enumerate() {
            let last = index + 1 == self.columns.len();
            if let Some(shown) = table.column_mut(index) {
                shown.set_padding((0, if last { 0 } else { GAP }));
                if column.right {
                    shown.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        table
    }
}

/// A word outside a table, for a terminal with colours (ECMA-48, SGR).
pub(crate) fn paint(text: &str, tone: Tone, console: &Console<'_>) -> String {
    let code = match tone {
        Tone::Good => 32,
        Tone::Careful => 33,
        Tone::Bad => 31,
        Tone::Plain => return text.to_owned(),
    };
    if console.colour {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

/// Makes columns at least so wide.
fn widen(table: &mut Table, at_least: &[u16]) {
    for (index, &width) in at_least.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            let padded = width.saturating_add(column.padding_width());
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(padded)));
        }
    }
}

/// How wide a table with such columns is.
fn total_width(widths: &[u16]) -> usize {
    let content: usize = widths.iter().map(|&width| usize::from(width)).sum();
    content + usize::from(GAP) * widths.len().saturating_sub(1)
}

fn cell(text: &Text) -> Cell {
    // A name from elsewhere must not steer the terminal.
    let content = text.content.replace(char::is_control, "\u{fffd}");
    let cell = Cell::new_owned(content);
    match text.tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::DarkGreen),
        Tone::Careful => cell.fg(Color::DarkYellow),
        Tone::Bad => cell.fg(Color::DarkRed),
    }
}

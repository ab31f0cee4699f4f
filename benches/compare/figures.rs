//! Figures by gateway, and the table that they make.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::peers::Peer;

/// All that was measured, in the order in which it was first.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<Row>);

#[derive(Debug)]
struct Row {
    title: String,
    values: BTreeMap<Peer, Vec<f64>>,
}

impl Figures {
    /// One more value of a figure; less is better. The title has the unit.
    pub(crate) fn add(&mut self, title: &str, peer: Peer, value: f64) {
        let at = self.0.iter().position(|row| row.title == title);
        let at = at.unwrap_or_else(|| {
            self.0.push(Row {
                title: title.to_owned(),
                values: BTreeMap::new(),
            });
            self.0.len() - 1
        });
        self.0[at].values.entry(peer).or_default().push(value);
    }

    /// Medians with the least and the greatest, and wsgate's ratio to the best of the others.
    pub(crate) fn table(&self, peers: &[Peer]) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let mut text = String::from("| figure |");
        peers
            .iter()
            .for_each(|peer| put(&mut text, &format!(" {peer} |")));
        text += " wsgate / best other |\n| --- |";
        text += &" --- |".repeat(peers.len() + 1);
        text += "\n";
        for row in &self.0 {
            put(&mut text, &format!("| {} |", row.title));
            peers
                .iter()
                .for_each(|peer| put(&mut text, &format!(" {} |", row.cell(*peer))));
            put(
                &mut text,
                &format!(" {} |\n", row.ratio().unwrap_or_else(|| "–".to_owned())),
            );
        }
        text
    }
}

fn put(text: &mut String, more: &str) {
    // Writing to a String does not fail.
    let _ = text.write_str(more);
}

impl Row {
    fn median(&self, peer: Peer) -> Option<f64> {
        let mut values = self.values.get(&peer)?.clone();
        values.sort_by(f64::total_cmp);
        let (low, high) = (
            values.get((values.len() - 1) / 2)?,
            values.get(values.len() / 2)?,
        );
        Some((low + high) / 2.0)
    }

    fn cell(&self, peer: Peer) -> String {
        let (Some(median), Some(values)) = (self.median(peer), self.values.get(&peer)) else {
            return "–".to_owned();
        };
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match values.len() {
            1 => number(median),
            _ => format!(
                "**{}** ({}–{})",
                number(median),
                number(least),
                number(most)
            ),
        }
    }

    fn ratio(&self) -> Option<String> {
        let ours = self.median(Peer::Wsgate)?;
        let others = self.values.keys().filter(|peer| **peer != Peer::Wsgate);
        let best = others
            .filter_map(|peer| self.median(*peer))
            .min_by(f64::total_cmp)?;
        // Of what is next to nothing a ratio says nothing.
        (best > 0.05).then(|| format!("{:.2}", ours / best))
    }
}

/// Three digits that count.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

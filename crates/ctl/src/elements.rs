//! Cuts a JSON array that arrives in pieces into its elements, so that 100,000
//! tunnels never stand in memory at once.
//!
//! Elements must be objects. Nothing but nesting and strings (RFC 8259) is looked
//! at here: whether an element is right is serde_json's to say.

use serde::de::DeserializeOwned;

/// The array so far.
#[derive(Debug, Default)]
pub(crate) struct Elements {
    /// Brackets and braces open; 1 is the array itself.
    depth: usize,
    in_string: bool,
    escaped: bool,
    finished: bool,
    element: Vec<u8>,
}

impl Elements {
    /// Takes the next piece, and adds the elements that it completes.
    pub(crate) fn push<T: DeserializeOwned>(
        &mut self,
        piece: &[u8],
        into: &mut Vec<T>,
    ) -> Result<(), serde_json::Error> {
        for &byte in piece {
            if self.completes_element(byte) {
                into.push(serde_json::from_slice(&self.element)?);
                self.element.clear();
            }
        }
        Ok(())
    }

    /// Whether the array's end has been seen.
    pub(crate) fn finished(&self) -> bool {
        self.finished
    }

    fn completes_element(&mut self, byte: u8) -> bool {
        let was_inside = self.depth > 1;
        if self.in_string {
            self.inside_string(byte);
        } else {
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        if was_inside || self.depth > 1 {
            self.element.push(byte);
        }
        self.finished |= byte == b']' && self.depth == 0;
        was_inside && self.depth == 1
    }

    fn inside_string(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_string = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const ARRAY: &str = r#" [ {"a":[1,{"b":"]}\"\\"}]} ,
        {}, {"c":"[{"} ] "#;

    #[test]
    fn every_way_of_cutting_the_array_gives_the_same_elements() {
        let expected: Vec<Value> = serde_json::from_str(ARRAY).unwrap();
        for size in 1..=ARRAY.len() {
            let (mut elements, mut found) = (Elements::default(), Vec::<Value>::new());
            for piece in ARRAY.as_bytes().chunks(size) {
                elements.push(piece, &mut found).unwrap();
            }
            assert_eq!(found, expected, "in pieces of {size}");
            assert!(elements.finished());
        }
    }

    #[test]
    fn an_array_cut_short_is_not_finished() {
        let (mut elements, mut found) = (Elements::default(), Vec::<Value>::new());
        elements.push(br#"[{"a":"]"},{"b":1"#, &mut found).unwrap();
        assert_eq!(found.len(), 1);
        assert!(!elements.finished());
    }
}

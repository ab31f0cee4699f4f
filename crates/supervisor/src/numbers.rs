//! Numbers of routes and servers: their places on the board, the same in every generation.

use std::collections::{BTreeMap, BTreeSet};

use wsgate_config::Config;
use wsgate_os::board;

/// More distinct routes or servers than the board has places for.
#[derive(Debug, thiserror::Error)]
#[error(
    "more than {most} {what} in all generations that live: remove some, or wait until old generations have drained"
)]
pub(crate) struct Full {
    what: &'static str,
    most: usize,
}

/// Who has which number. A number is given anew only when no generation that lives uses it.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    routes: Book<String>,
    servers: Book<(String, String)>,
}

impl Numbers {
    /// Fills in the numbers of `config`. `living` are the configurations of all generations.
    pub(crate) fn assign<'a>(
        &mut self,
        config: &mut Config,
        living: impl Iterator<Item = &'a Config> + Clone,
    ) -> Result<(), Full> {
        let routes = living
            .clone()
            .flat_map(|config| config.routes.iter().map(|route| route.number))
            .collect();
        let servers = living
            .flat_map(|config| config.upstreams.values())
            .flat_map(|upstream| upstream.servers.iter().map(|server| server.number))
            .collect();
        for route in &mut config.routes {
            let number = self.routes.number(route.name(), &routes, board::ROUTES);
            route.number = number.ok_or(Full {
                what: "routes",
                most: board::ROUTES,
            })?;
        }
        for (name, upstream) in &mut config.upstreams {
            for server in &mut upstream.servers {
                let key = (name.clone(), server.address.to_string());
                let number = self.servers.number(key, &servers, board::SERVERS);
                server.number = number.ok_or(Full {
                    what: "servers",
                    most: board::SERVERS,
                })?;
            }
        }
        Ok(())
    }

    /// Every route that has a number.
    pub(crate) fn routes(&self) -> impl Iterator<Item = (&String, u32)> {
        self.routes
            .numbers
            .iter()
            .map(|(name, number)| (name, *number))
    }

    /// Every server that has a number, by upstream and address.
    pub(crate) fn servers(&self) -> impl Iterator<Item = (&(String, String), u32)> {
        self.servers
            .numbers
            .iter()
            .map(|(name, number)| (name, *number))
    }

    /// A server's number.
    pub(crate) fn server(&self, upstream: &str, address: &str) -> Option<u32> {
        self.servers
            .numbers
            .get(&(upstream.to_owned(), address.to_owned()))
            .copied()
    }
}

#[derive(Debug)]
struct Book<K> {
    numbers: BTreeMap<K, u32>,
}

impl<K> Default for Book<K> {
    fn default() -> Self {
        Self {
            numbers: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone> Book<K> {
    fn number(&mut self, key: K, in_use: &BTreeSet<u32>, most: usize) -> Option<u32> {
        if let Some(number) = self.numbers.get(&key) {
            return Some(*number);
        }
        if self.numbers.len() >= most {
            // Only now: a name that comes back finds its figures again.
            self.numbers.retain(|_, number| in_use.contains(number));
        }
        let taken: BTreeSet<u32> = self.numbers.values().copied().collect();
        let next = taken.last().map_or(0, |last| last + 1);
        let number = if (next as usize) < most {
            next
        } else {
            (0..most as u32).find(|n| !taken.contains(n))?
        };
        self.numbers.insert(key, number);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number() {
        let mut book = Book::default();
        let none = BTreeSet::new();
        assert_eq!(book.number("a", &none, 8), Some(0));
        assert_eq!(book.number("b", &none, 8), Some(1));
        assert_eq!(book.number("a", &none, 8), Some(0));
    }

    #[test]
    fn a_full_book_forgets_only_what_no_generation_uses() {
        let mut book = Book::default();
        let used = BTreeSet::from([0, 2]);
        for (name, number) in [("a", 0), ("b", 1), ("c", 2)] {
            assert_eq!(book.number(name, &used, 3), Some(number));
        }
        assert_eq!(book.number("d", &used, 3), Some(1));
        assert_eq!(book.number("a", &used, 3), Some(0));
        assert_eq!(book.number("e", &BTreeSet::from([0, 1, 2]), 3), None);
    }
}

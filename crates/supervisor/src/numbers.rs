//! Numbers of routes and servers: their places on the board, the same in every generation.

use std::collections::{BTreeMap, BTreeSet};

use wsgate_config::Config;
use wsgate_os::board::{self, Counted};

use crate::totals::Figures;

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
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    routes: Book<String>,
    servers: Book<(String, String)>,
    /// Those that tunnels went by when this supervisor began. Tunnels that lost their way go by numbers of
    /// configurations that are gone, so not all of these have a name here.
    found: Counted,
}

impl Numbers {
    /// Fills in the numbers of `config`. `living` are the configurations of all generations; `figures` tell which
    /// numbers tunnels go by whose route or server none of these has any more.
    pub(crate) fn assign<'a>(
        &mut self,
        config: &mut Config,
        living: impl Iterator<Item = &'a Config> + Clone,
        figures: &Figures,
    ) -> Result<(), Full> {
        let mut routes: BTreeSet<u32> = living
            .clone()
            .flat_map(|config| config.routes.iter().map(|route| route.number))
            .collect();
        let mut servers: BTreeSet<u32> = living
            .flat_map(|config| config.upstreams.values())
            .flat_map(|upstream| upstream.servers.iter().map(|server| server.number))
            .collect();
        let known = self.routes.numbers.values();
        let known = known.chain(&self.found.routes).copied();
        routes.extend(known.filter(|number| figures.route(*number).0 > 0));
        let known = self.server_numbers();
        servers.extend(known.filter(|number| figures.server(*number).tunnels > 0));
        for route in &mut config.routes {
            let number = self.routes.number(route.name(), &mut routes, board::ROUTES);
            route.number = number.ok_or(Full {
                what: "routes",
                most: board::ROUTES,
            })?;
        }
        for (name, upstream) in &mut config.upstreams {
            for server in &mut upstream.servers {
                let key = (name.clone(), server.address.to_string());
                let number = self.servers.number(key, &mut servers, board::SERVERS);
                server.number = number.ok_or(Full {
                    what: "servers",
                    most: board::SERVERS,
                })?;
            }
        }
        Ok(())
    }

    /// Takes over the numbers of a configuration that workers of another supervisor run by.
    pub(crate) fn adopt(&mut self, config: &Config) {
        for route in &config.routes {
            self.routes.take(route.name(), route.number);
        }
        for (name, upstream) in &config.upstreams {
            for server in &upstream.servers {
                let key = (name.clone(), server.address.to_string());
                self.servers.take(key, server.number);
            }
        }
    }

    /// Numbers that tunnels go by, whether they have a name here or not.
    pub(crate) fn find(&mut self, counted: Counted) {
        self.routes.recycled |= !counted.routes.is_empty();
        self.servers.recycled |= !counted.servers.is_empty();
        self.found = counted;
    }

    /// The number of every server that tunnels may go to; those whose name is forgotten as well.
    pub(crate) fn server_numbers(&self) -> impl Iterator<Item = u32> {
        let named = self.servers.numbers.values();
        named.chain(&self.found.servers).copied()
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

#[derive(Clone, Debug)]
struct Book<K> {
    numbers: BTreeMap<K, u32>,
    /// Numbers have been given anew: they are no longer those from 0 on.
    recycled: bool,
}

impl<K> Default for Book<K> {
    fn default() -> Self {
        Self {
            numbers: BTreeMap::new(),
            recycled: false,
        }
    }
}

impl<K: Ord + Clone> Book<K> {
    /// The number of a name, which joins those in use.
    fn number(&mut self, key: K, in_use: &mut BTreeSet<u32>, most: usize) -> Option<u32> {
        let known = self.numbers.get(&key).copied();
        let number = match known {
            Some(number) => number,
            None => self.free(in_use, most)?,
        };
        self.numbers.insert(key, number);
        in_use.insert(number);
        Some(number)
    }

    /// There may be gaps then: a name that was forgotten had a number, too.
    fn take(&mut self, key: K, number: u32) {
        self.numbers.insert(key, number);
        self.recycled = true;
    }

    fn free(&mut self, in_use: &BTreeSet<u32>, most: usize) -> Option<u32> {
        let next = self.numbers.len();
        if next < most && !self.recycled {
            return u32::try_from(next).ok();
        }
        // Only now: a name that comes back before finds its figures again.
        self.recycled = true;
        self.numbers.retain(|_, number| in_use.contains(number));
        (0..most as u32).find(|number| !in_use.contains(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number() {
        let mut book = Book::default();
        let used = &mut BTreeSet::new();
        assert_eq!(book.number("a", used, 8), Some(0));
        assert_eq!(book.number("b", used, 8), Some(1));
        assert_eq!(book.number("a", used, 8), Some(0));
    }

    #[test]
    fn a_full_book_forgets_only_what_nobody_uses() {
        let mut book = Book::default();
        let used = &mut BTreeSet::new();
        for (name, number) in [("a", 0), ("b", 1), ("c", 2)] {
            assert_eq!(book.number(name, used, 3), Some(number));
        }
        let used = &mut BTreeSet::from([0, 2]);
        assert_eq!(book.number("d", used, 3), Some(1));
        assert_eq!(book.number("a", used, 3), Some(0));
        assert_eq!(book.number("e", used, 3), None);
    }

    #[test]
    fn two_new_names_of_one_configuration_never_share_a_number() {
        let mut book = Book::default();
        for name in ["a", "b", "c"] {
            book.number(name, &mut BTreeSet::new(), 3);
        }
        let used = &mut BTreeSet::new();
        let numbers = ["p", "q", "r"].map(|name| book.number(name, used, 3));
        assert_eq!(numbers, [Some(0), Some(1), Some(2)]);
        assert_eq!(book.number("p", used, 3), Some(0));
    }

    fn config(host: &str, server: &str) -> Config {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nhost = \"{host}\"\nupstream = \"a\"\n[upstream.a]\nservers = [\"{server}\"]\n"
        );
        let files = vec![wsgate_config::SourceFile {
            path: "wsgate.toml".into(),
            text,
        }];
        let sources = wsgate_config::Sources {
            files,
            include_dirs: Vec::new(),
        };
        wsgate_config::parse(sources).expect("no mistakes").config
    }

    /// Numbers of the route and the server of a second configuration, when nothing runs by the first one any more.
    fn numbers_after(tunnels: u64) -> (u32, u32) {
        use std::sync::atomic::Ordering::Relaxed;
        let (board, _fd) = board::Board::create().expect("a board");
        let mut figures = Figures::new(board.clone());
        let block = figures.claim().expect("a block");
        board.route(block, 0, 0).store(tunnels, Relaxed);
        board.server(block, 0, 0).store(tunnels, Relaxed);
        let mut numbers = Numbers::default();
        numbers.adopt(&config("one.example", "127.0.0.1:1"));
        let mut second = config("two.example", "127.0.0.1:2");
        let nobody = std::iter::empty();
        numbers.assign(&mut second, nobody, &figures).expect("room");
        let server = &second.upstreams["a"].servers[0];
        (second.routes[0].number, server.number)
    }

    #[test]
    fn a_number_without_a_name_is_not_given_anew_while_a_tunnel_goes_by_it() {
        use std::sync::atomic::Ordering::Relaxed;
        let (board, fd) = board::Board::create().expect("a board");
        let mut figures = Figures::new(board.clone());
        let block = figures.claim().expect("a block");
        board.route(block, 1, 0).store(1, Relaxed);
        board.server(block, 1, 0).store(1, Relaxed);
        let mut numbers = Numbers::default();
        // The next supervisor's: configurations that live have one route and one server.
        numbers.adopt(&config("one.example", "127.0.0.1:1"));
        numbers.find(board.counted(&fd).expect("the board"));
        assert_eq!(numbers.server_numbers().collect::<Vec<_>>(), [0, 1]);
        let given = || {
            let living = config("one.example", "127.0.0.1:1");
            let mut config = config("two.example", "127.0.0.1:2");
            let mut numbers = numbers.clone();
            let living = std::iter::once(&living);
            numbers.assign(&mut config, living, &figures).expect("room");
            let server = &config.upstreams["a"].servers[0];
            (config.routes[0].number, server.number)
        };
        assert_eq!(given(), (2, 2));
        board.route(block, 1, 0).store(0, Relaxed);
        board.server(block, 1, 0).store(0, Relaxed);
        assert_eq!(given(), (1, 1));
    }

    #[test]
    fn a_number_that_a_tunnel_goes_by_is_not_given_anew() {
        assert_eq!(numbers_after(0), (0, 0));
        assert_eq!(numbers_after(1), (1, 1));
    }
}

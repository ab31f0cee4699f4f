//! Limits of the process.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open descriptors to the hard one, and returns the
/// soft limit now in force. Each tunnel takes two descriptors, and what is over
/// the limit when descriptors are passed is lost (see [`crate::channel`]).
///
/// # Errors
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise_nofile() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{helper, passes};

    #[test]
    fn the_soft_limit_of_descriptors_becomes_the_hard_one() {
        passes(&mut helper("limits::tests::helper_raises"));
    }

    #[test]
    #[ignore = "run by the_soft_limit_of_descriptors_becomes_the_hard_one"]
    fn helper_raises() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        assert_eq!(raise_nofile().unwrap(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
        assert_eq!(raise_nofile().unwrap(), hard);
    }
}

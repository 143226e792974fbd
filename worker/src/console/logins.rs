//! How often may somebody try a token?

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Wrong tokens within this time count.
const WINDOW: Duration = Duration::from_mins(1);
/// Wrong tokens from one address, and from all together.
const MAX_PER_ADDRESS: usize = 5;
const MAX_IN_ALL: usize = 30;

/// The latest wrong tokens. Pure; as many entries at most as may be tried in all.
#[derive(Debug, Default)]
pub struct WrongTokens(VecDeque<(Instant, IpAddr)>);

impl WrongTokens {
    /// Whether another token may be tried from this address.
    pub fn may_try(&mut self, address: IpAddr, now: Instant) -> bool {
        while self.0.front().is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.0.pop_front();
        }
        let of_address = self.0.iter().filter(|(_, other)| *other == address).count();
        of_address < MAX_PER_ADDRESS && self.0.len() < MAX_IN_ALL
    }

    /// Records a wrong token.
    pub fn record(&mut self, address: IpAddr, now: Instant) {
        self.0.push_back((now, address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_is_slow_for_each_and_for_all() {
        let (mut wrong, start) = (WrongTokens::default(), Instant::now());
        let address = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]);
        for _ in 0..MAX_PER_ADDRESS {
            assert!(wrong.may_try(address(0), start));
            wrong.record(address(0), start);
        }
        assert!(!wrong.may_try(address(0), start) && wrong.may_try(address(1), start));
        for n in MAX_PER_ADDRESS..MAX_IN_ALL {
            wrong.record(address(n), start);
        }
        assert!(!wrong.may_try(address(200), start));
        assert!(wrong.may_try(address(0), start + WINDOW));
    }
}

//! How much is taken from RabbitMQ at a time, which bounds deliveries by number only, by the size of their bodies. Pure.

use crate::settings::Settings;

/// Most bodies in hand per tenant: by default each lane writes a full batch while the next one fills.
const MANY: usize = 1600;
/// Most bodies in hand while they are large.
const FEW: usize = 64;
/// Bytes of bodies in hand per tenant from which on they are large. As many as [`FEW`] of the largest that ingest accepts by default.
const MAX_BYTES: usize = 64 << 20;

/// How much is taken at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// What it takes to keep all lanes busy.
    Many,
    /// What memory has room for, however large the bodies are: to begin with, since nothing is known of those that wait.
    Few,
    /// One event. After a long outage a small write of our own may pass where a batch still fails, and what is held and
    /// given back again and again comes nearer to RabbitMQ's delivery limit: so only one event at a time may.
    Trial,
}

impl Intake {
    /// Most deliveries in hand.
    #[must_use]
    pub fn prefetch(self, settings: &Settings) -> usize {
        let many = (2 * usize::from(settings.partitions) * settings.batch_size).min(MANY);
        match self {
            Self::Many => many,
            Self::Few => many.min(FEW),
            Self::Trial => 1,
        }
    }
}

/// The bodies that were received lately.
#[derive(Debug, Default)]
pub struct Sizes {
    bodies: usize,
    bytes: usize,
}

impl Sizes {
    /// Counts one that was received at this intake, and says which other one would be right from now on.
    pub fn count(&mut self, body: usize, bytes_in_hand: usize, intake: Intake) -> Option<Intake> {
        match intake {
            Intake::Many => (bytes_in_hand > MAX_BYTES).then_some(Intake::Few),
            Intake::Few => {
                (self.bodies, self.bytes) = (self.bodies + 1, self.bytes + body);
                if self.bodies < FEW {
                    return None;
                }
                let Self { bodies, bytes } = std::mem::take(self);
                (bytes / bodies * MANY <= MAX_BYTES / 2).then_some(Intake::Many)
            }
            Intake::Trial => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of this intake with bodies of one size, of which all stay in hand that may.
    fn after(bodies: usize, size: usize, intake: Intake) -> Option<Intake> {
        let mut sizes = Sizes::default();
        (1..=bodies).find_map(|n| sizes.count(size, n.min(MANY) * size, intake))
    }

    #[test]
    fn many_are_taken_once_they_have_turned_out_small() {
        assert_eq!(after(63, 1 << 10, Intake::Few), None);
        assert_eq!(after(64, 1 << 10, Intake::Few), Some(Intake::Many));
        assert_eq!(after(10_000, 40 << 10, Intake::Many), None);
    }

    #[test]
    fn few_are_taken_as_long_as_they_are_large() {
        assert_eq!(after(64, 1 << 20, Intake::Many), None);
        assert_eq!(after(65, 1 << 20, Intake::Many), Some(Intake::Few));
        assert_eq!(after(10_000, 21 << 10, Intake::Few), None);
        let mut sizes = Sizes::default();
        let sizes_later =
            (0..128).find_map(|n| sizes.count(if n < 64 { 1 << 20 } else { 900 }, 0, Intake::Few));
        assert_eq!(sizes_later, Some(Intake::Many), "those of long ago don't matter");
    }
}

//! What the parts do by themselves, with the machine to themselves.

/// In events per second, as far as measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ceilings {
    /// A web server that only replies.
    pub replies: Option<f64>,
    /// Publishing that waits for confirms.
    pub publishing: Option<f64>,
    /// Transactions with the same documents.
    pub transactions: Option<f64>,
}

impl Ceilings {
    /// What they allow all together: each event takes the machine's time of one after the other. Delivering from RabbitMQ isn't in
    /// it, nor what Penstock is for.
    pub fn together(self) -> Option<f64> {
        Some(1.0 / (1.0 / self.replies? + 1.0 / self.publishing? + 1.0 / self.transactions?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_add_up() {
        let ceilings =
            Ceilings { replies: Some(100_000.0), publishing: Some(25_000.0), transactions: Some(20_000.0) };
        assert_eq!(ceilings.together().map(f64::round), Some(10_000.0));
        assert_eq!(Ceilings { publishing: None, ..ceilings }.together(), None);
    }
}

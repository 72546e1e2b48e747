//! Reading an agent's `/metrics`.

use std::net::SocketAddr;

use anyhow::Context;

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics(String);

impl From<String> for Metrics {
    /// The text of a scrape that someone else made.
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Metrics {
    /// Asks an agent's admin listener.
    pub async fn scrape(admin: SocketAddr) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let response =
            client.get(format!("http://{admin}/metrics")).send().await.context("cannot read the metrics")?;
        Ok(Self(response.error_for_status()?.text().await?))
    }

    /// The sum of all series of this name whose labels include all of `labels`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.0
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\""))))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// The text as scraped.
    pub fn text(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_labels() {
        let metrics = Metrics(
            "# TYPE a counter\na_total{x=\"1\",y=\"p\"} 2\na_total{x=\"1\",y=\"q\"} 3\na_total{x=\"2\",y=\"p\"} 4\na_totals 9\nb 7\n"
                .to_owned(),
        );
        for (name, labels, expected) in [
            ("a_total", &[][..], 9.0),
            ("a_total", &[("x", "1")], 5.0),
            ("a_total", &[("x", "1"), ("y", "p")], 2.0),
            ("b", &[], 7.0),
            ("c", &[], 0.0),
        ] {
            assert!((metrics.sum(name, labels) - expected).abs() < f64::EPSILON, "{name} {labels:?}");
        }
    }
}

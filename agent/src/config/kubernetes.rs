//! `kubernetes`: the agent's part in a cluster.

use super::raw::RawKubernetes;
use crate::prepull::{cluster, spark};

/// How often the node is read when there is nothing to do.
const IDLE: std::time::Duration = std::time::Duration::from_mins(3);

/// Nothing unless `imageSets` is on. `node` stands in for a name that is not given.
pub(super) fn check(raw: RawKubernetes, defaults: RawKubernetes, node: &str) -> Option<cluster::Config> {
    macro_rules! value {
        ($field:ident) => {
            raw.$field.or(defaults.$field).expect("every key read so has a default").0
        };
    }
    let interval = value!(status_interval).0;
    let spark = value!(spark).then(|| spark::Config {
        lead: raw.spark_lead.or(defaults.spark_lead).expect("`kubernetes.sparkLead` has a default").0.0,
        ttl: raw.spark_ttl.or(defaults.spark_ttl).expect("`kubernetes.sparkTtl` has a default").0.0,
        // Each agent and then the leader write once per interval.
        settled: interval * 3,
        namespaces: value!(spark_namespaces),
        images: value!(spark_images).0,
        bytes: value!(spark_bytes).0,
    });
    value!(image_sets).then(|| cluster::Config {
        api: raw.api.map(|api| api.0.0.to_string()),
        node: raw.node.map_or_else(|| node.to_owned(), |node| node.0.text().to_owned()),
        namespace: value!(namespace).text().to_owned(),
        taint: value!(taint),
        deadline: value!(warm_deadline).0,
        interval,
        idle: IDLE.min(interval * 18),
        spark,
    })
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn read(keys: &str) -> Option<crate::prepull::cluster::Config> {
        let text = format!("registries: [{{host: r.test}}]\npeer: {{name: n1}}\nkubernetes: {{{keys}}}");
        Config::from_yaml(&text).unwrap_or_else(|error| panic!("{error}")).kubernetes
    }

    #[test]
    fn a_cluster_is_spoken_to_when_it_is_asked_for() {
        assert_eq!(read(""), None);
        let config = read("imageSets: true").unwrap();
        assert_eq!(
            (config.node.as_str(), config.taint.as_str(), config.api),
            ("n1", "hearth.dev/warming", None)
        );
        assert_eq!(config.spark.unwrap().lead.as_secs(), 600);
        let config =
            read("imageSets: true, spark: false, node: n2, statusInterval: 1s, api: \"http://127.0.0.1:1\"")
                .unwrap();
        assert_eq!((config.node.as_str(), config.spark, config.interval.as_secs()), ("n2", None, 1));
    }
}

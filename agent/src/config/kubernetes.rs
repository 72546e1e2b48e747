//! `kubernetes`: the agent's part in a cluster.

use super::raw::RawKubernetes;
use crate::{
    controller::{self, spark},
    prepull::cluster,
};

/// How often the node is read when there is nothing to do.
const IDLE: std::time::Duration = std::time::Duration::from_mins(3);

/// The agent's and the controller's settings; nothing unless `imageSets` is on. `node` stands in for a name that is not given;
/// `signing` is the name of peers whose certificates the controller signs.
pub(super) fn check(
    raw: RawKubernetes,
    defaults: RawKubernetes,
    node: &str,
    signing: Option<String>,
) -> Option<(cluster::Config, controller::Config)> {
    macro_rules! value {
        ($field:ident) => {
            raw.$field.or(defaults.$field).expect("every key read so has a default").0
        };
    }
    let interval = value!(status_interval).0;
    let spark = value!(spark).then(|| spark::Config {
        lead: raw.spark_lead.or(defaults.spark_lead).expect("`kubernetes.sparkLead` has a default").0.0,
        ttl: raw.spark_ttl.or(defaults.spark_ttl).expect("`kubernetes.sparkTtl` has a default").0.0,
        namespaces: value!(spark_namespaces),
        images: value!(spark_images).0,
        bytes: value!(spark_bytes).0,
    });
    if !value!(image_sets) {
        return None;
    }
    let api = raw.api.map(|api| api.0.0.to_string());
    let (taint, heartbeat) = (value!(taint), value!(heartbeat).0);
    let account = value!(agent_account).text().to_owned();
    let agent = cluster::Config {
        api: api.clone(),
        node: raw.node.map_or_else(|| node.to_owned(), |node| node.0.text().to_owned()),
        taint: taint.clone(),
        warm_labels: value!(warm_labels),
        pod_events: value!(pod_events),
        deadline: value!(warm_deadline).0,
        interval,
        heartbeat,
        idle: IDLE.min(interval * 18),
    };
    let controller = controller::Config {
        api,
        name: node.to_owned(),
        namespace: value!(namespace).text().to_owned(),
        taint,
        nodes: value!(agent_nodes),
        interval,
        heartbeat,
        spark,
        certificates: signing.map(|name| controller::certificates::Config { name, account }),
    };
    Some((agent, controller))
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn read(keys: &str) -> Config {
        let text = format!("registries: [{{host: r.test}}]\npeer: {{name: n1}}\nkubernetes: {{{keys}}}");
        Config::from_yaml(&text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_cluster_is_spoken_to_when_it_is_asked_for() {
        let config = read("");
        assert_eq!((config.kubernetes, config.controller), (None, None));
        let both = read("imageSets: true");
        let (config, controller) = (both.kubernetes.unwrap(), both.controller.unwrap());
        assert_eq!(
            (config.node.as_str(), config.taint.as_str(), config.api),
            ("n1", "hearth.dev/warming", None)
        );
        assert_eq!(controller.spark.unwrap().lead.as_secs(), 600);
        assert_eq!((config.heartbeat.as_secs(), controller.namespace.as_str()), (20, "hearth"));
        let both =
            read("imageSets: true, spark: false, node: n2, statusInterval: 1s, api: \"http://127.0.0.1:1\"");
        let (config, controller) = (both.kubernetes.unwrap(), both.controller.unwrap());
        assert_eq!((config.node.as_str(), controller.spark, config.interval.as_secs()), ("n2", None, 1));
    }
}

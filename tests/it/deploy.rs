//! What is in `deploy/` for Prometheus and Grafana asks for metrics and labels that a running proxy
//! has, Debian's Prometheus understands it, and each alert has a paragraph that says what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};

use pgtenant::cluster::free_port;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::documents::read;
use crate::harness::{Process, Setup, eventually, server_line, world};

const RULES: &str = "deploy/prometheus/pgtenant.rules.yml";
const DASHBOARD: &str = "deploy/grafana/pgtenant.json";

// ---- queries, taken apart ----

/// A metric that a query names, with its conditions: label, operator, value.
#[derive(Debug, PartialEq, Eq)]
struct Selector {
    metric: String,
    conditions: Vec<(String, String, String)>,
}

/// What a query names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    selectors: Vec<Selector>,
    /// By what it groups. None: it does not.
    groups: Option<BTreeSet<String>>,
}

/// Labels of the series of each metric.
type Series = BTreeMap<String, Vec<BTreeMap<String, String>>>;

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    &text[..end.unwrap_or(text.len())]
}

/// PromQL as far as these queries go.
///
/// # Errors
/// What is no metric of the proxy's, no function and no keyword.
fn take_apart(text: &str) -> Result<Query, String> {
    let mut query = Query::default();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if first == '[' {
            let (_, behind) = rest.split_once(']').ok_or("a range without end")?;
            rest = behind.trim_start();
            continue;
        }
        if !first.is_ascii_alphabetic() {
            rest = rest[first.len_utf8()..].trim_start();
            continue;
        }
        let name = word(rest);
        rest = rest[name.len()..].trim_start();
        match name {
            "by" | "on" => {
                let list = rest.strip_prefix('(').ok_or("by what?")?;
                let (list, behind) = list.split_once(')').ok_or("a list without end")?;
                let labels = list.split(',').map(|label| label.trim().to_owned());
                query.groups.get_or_insert_default().extend(labels);
                rest = behind.trim_start();
            }
            "and" | "or" | "unless" => {}
            _ if name.starts_with("pgtenant_") => {
                let mut conditions = Vec::new();
                if let Some(inside) = rest.strip_prefix('{') {
                    let (inside, behind) = inside.split_once('}').ok_or("{ without end")?;
                    for condition in inside.split(", ") {
                        conditions.push(condition_of(condition)?);
                    }
                    rest = behind.trim_start();
                }
                query.selectors.push(Selector {
                    metric: name.to_owned(),
                    conditions,
                });
            }
            _ if rest.starts_with('(') || rest.starts_with("by") => {}
            _ => return Err(format!("{name} is no metric of pgtenant's")),
        }
    }
    match query.selectors.is_empty() {
        true => Err("it names no metric".to_owned()),
        false => Ok(query),
    }
}

fn condition_of(text: &str) -> Result<(String, String, String), String> {
    let label = word(text.trim());
    let rest = text.trim()[label.len()..].trim();
    let (operator, value) = rest.split_once('"').ok_or("a condition without a value")?;
    let value = value.strip_suffix('"').ok_or("a value without end")?;
    Ok((label.to_owned(), operator.to_owned(), value.to_owned()))
}

/// Of the text of `/metrics`.
fn series(metrics: &str) -> Series {
    let mut series = Series::new();
    let lines = metrics.lines().filter(|line| line.starts_with("pgtenant_"));
    for line in lines {
        let (name, _) = line.rsplit_once(' ').expect("a value");
        let (metric, labels) = name.split_once('{').unwrap_or((name, ""));
        let labels = labels.split("\",").filter_map(|label| {
            let (label, value) = label.split_once("=\"")?;
            let value = value.trim_end_matches('}').trim_end_matches('"');
            Some((label.to_owned(), value.to_owned()))
        });
        let of = series.entry(metric.to_owned()).or_default();
        of.push(labels.collect());
    }
    series
}

/// What of a query, and of the labels that are shown of its result, is not in the metrics.
fn mistakes(text: &str, shown: &[&str], series: &Series) -> Vec<String> {
    let query = match take_apart(text) {
        Ok(query) => query,
        Err(mistake) => return vec![mistake],
    };
    let mut mistakes = Vec::new();
    for selector in &query.selectors {
        let Some(of) = series.get(&selector.metric) else {
            mistakes.push(format!("there is no metric {}", selector.metric));
            continue;
        };
        let values = |label: &str| -> BTreeSet<&String> {
            of.iter().filter_map(|labels| labels.get(label)).collect()
        };
        let grouped = query.groups.iter().flatten().map(String::as_str);
        let conditions = selector.conditions.iter();
        let named = conditions.clone().map(|(label, _, _)| label.as_str());
        let shown_here = shown.iter().copied().filter(|_| query.groups.is_none());
        for label in grouped.chain(named).chain(shown_here) {
            if values(label).is_empty() {
                mistakes.push(format!("{} has no label {label}", selector.metric));
            }
        }
        for (label, _, value) in conditions {
            let literal = value.split('|').filter(|value| !value.contains(['$', '.']));
            for value in literal {
                if !values(label).contains(&value.to_owned()) {
                    mistakes.push(format!("{label} of {} is never {value}", selector.metric));
                }
            }
        }
    }
    if let Some(groups) = &query.groups {
        let lost = shown.iter().filter(|label| !groups.contains(**label));
        mistakes.extend(lost.map(|label| format!("the result has no label {label}")));
    }
    mistakes
}

/// The labels between `{{` and `}}`.
fn shown(text: &str) -> Vec<&str> {
    let parts = text.split("{{").skip(1);
    let parts = parts.filter_map(|part| part.split_once("}}"));
    parts
        .map(|(label, _)| label.trim().trim_start_matches("$labels."))
        .collect()
}

#[test]
fn what_is_not_in_the_metrics_is_found() {
    let metrics = "pgtenant_a_total{tenant=\"x, y\",kind=\"one\"} 1\npgtenant_b 2\n\
                   pgtenant_c_bucket{le=\"+Inf\",tenant=\"x\"} 1\n";
    let series = series(metrics);
    for (query, legend, expected) in [
        ("sum(rate(pgtenant_a_total[5m])) > 0", "", ""),
        (
            "sum by (tenant) (pgtenant_a_total{kind=\"one\"})",
            "{{tenant}}",
            "",
        ),
        (
            "histogram_quantile(0.99, sum by (tenant, le) (rate(pgtenant_c_bucket[5m])))",
            "{{ $labels.tenant }}",
            "",
        ),
        (
            "pgtenant_a_total{tenant=~\"$tenant\"} and pgtenant_b",
            "",
            "",
        ),
        (
            "rate(pgtenant_renamed_total[5m])",
            "",
            "there is no metric pgtenant_renamed_total",
        ),
        (
            "pgtenant_b / pgtenant_gone",
            "",
            "there is no metric pgtenant_gone",
        ),
        (
            "sum by (server) (pgtenant_a_total)",
            "",
            "pgtenant_a_total has no label server",
        ),
        (
            "pgtenant_b{kind=\"one\"}",
            "",
            "pgtenant_b has no label kind",
        ),
        (
            "pgtenant_a_total{kind=~\"one|two\"}",
            "",
            "kind of pgtenant_a_total is never two",
        ),
        ("pgtenant_b", "{{server}}", "pgtenant_b has no label server"),
        (
            "sum by (kind) (pgtenant_a_total)",
            "{{tenant}}",
            "the result has no label tenant",
        ),
        (
            "node_load1 > 1",
            "",
            "node_load1 is no metric of pgtenant's",
        ),
        ("vector(1)", "", "it names no metric"),
    ] {
        let found = mistakes(query, &shown(legend), &series);
        let expected: Vec<_> = (!expected.is_empty())
            .then_some(expected)
            .into_iter()
            .collect();
        // What is wrong of a label is said of its value, too.
        let first: Vec<_> = found.iter().take(1).map(String::as_str).collect();
        assert_eq!(first, expected, "{query}: {found:?}");
    }
}

// ---- the files ----

/// A query of a file, with where it stands and what labels are shown of its result.
struct Asked {
    place: String,
    query: String,
    legend: String,
    /// A page and a heading of `docs/`.
    runbook: String,
}

fn rules() -> Vec<Asked> {
    let file: Value = serde_yaml::from_str(&read(RULES)).expect("YAML");
    let groups = file["groups"].as_array().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    rules
        .map(|rule| Asked {
            place: text(&rule["alert"]),
            query: text(&rule["expr"]),
            legend: text(&rule["annotations"]["summary"]),
            runbook: text(&rule["annotations"]["runbook_url"])
                .strip_prefix("docs/")
                .expect("a page of docs/")
                .to_owned(),
        })
        .collect()
}

fn dashboard() -> Vec<Asked> {
    let file: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let mut asked = Vec::new();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    for panel in file["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            asked.push(Asked {
                place: text(&panel["title"]),
                query: text(&target["expr"]).replace("$__rate_interval", "1m"),
                legend: text(&target["legendFormat"]),
                runbook: text(&panel["links"][0]["url"])
                    .strip_prefix("${docs}/")
                    .expect("a page of docs/")
                    .to_owned(),
            });
        }
    }
    for variable in file["templating"]["list"].as_array().expect("variables") {
        let Some(query) = variable["query"]["query"].as_str() else {
            continue;
        };
        let inside = query.strip_prefix("label_values(");
        let inside = inside.and_then(|inside| inside.strip_suffix(')'));
        let (metric, label) = inside
            .and_then(|inside| inside.split_once(", "))
            .expect("label_values");
        asked.push(Asked {
            place: text(&variable["name"]),
            query: metric.to_owned(),
            legend: format!("{{{{{label}}}}}"),
            runbook: "alerts.md".to_owned(),
        });
    }
    asked
}

/// A heading as GitHub and mdBook make an anchor of it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn each_alert_and_panel_says_what_to_do() {
    let mut missing = Vec::new();
    for asked in rules().iter().chain(&dashboard()) {
        let (page, heading) = asked
            .runbook
            .split_once('#')
            .unwrap_or((&asked.runbook, ""));
        let text = read(&format!("docs/{page}"));
        let headings = text.lines().filter(|line| line.starts_with('#'));
        let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#').trim()));
        if !heading.is_empty() && !anchors.any(|anchor| anchor == heading) {
            missing.push(format!("{}: {}", asked.place, asked.runbook));
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    for alert in rules() {
        let own = format!("alerts.md#{}", alert.place.to_lowercase());
        assert_eq!(alert.runbook, own);
    }
}

// ---- a proxy and a Prometheus that run ----

/// What Debian's package `prometheus` has.
fn program(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|directory| directory.join(name));
    let found = places.find(|path| path.is_file());
    Command::new(found.unwrap_or_else(|| {
        panic!("{name} is not in PATH: scripts/install test installs it (package prometheus)")
    }))
}

async fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some(body.to_owned())
}

/// A proxy whose every metric has a value, and the port of its `http` address.
async fn served() -> (Process, u16) {
    let http = free_port().expect("a port");
    let sections = format!("http: {{ address: \"127.0.0.1:{http}\" }}");
    let setup = Setup {
        sections,
        ..Setup::default()
    };
    let world = world().await;
    let mut yaml = setup.yaml(world);
    for (name, cluster) in [("shared", &world.shared), ("silo", &world.silo)] {
        let without = server_line(name, cluster, setup.max_connections);
        let admin = format!(
            ", admin: {{ user: postgres, password: {} }} }}\n",
            cluster.superuser_password()
        );
        let with = without.replace(" }\n", &admin);
        assert!(yaml.contains(&without) && with != without);
        yaml = yaml.replace(&without, &with);
    }
    let proxy = Process::serve(&yaml, Stdio::null()).await;
    for name in ["t00", "t01"] {
        let mut client = proxy.client(name).await;
        client.query("SELECT 1").await;
    }
    for metric in ["pgtenant_doctor_findings{", "pgtenant_server_up{"] {
        eventually("all has been looked at", async || {
            let metrics = get(http, "/metrics").await.expect("metrics");
            metrics.lines().any(|line| line.starts_with(metric))
        })
        .await;
    }
    (proxy, http)
}

struct Prometheus {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn scraping(target: u16) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let port = free_port().expect("a port");
        let rules = std::env::current_dir().expect("a directory").join(RULES);
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs: [{{ job_name: pgtenant, static_configs: [{{ targets: [\"127.0.0.1:{target}\"] }}] }}]\n",
            rules.display()
        );
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("a file");
        let child = program("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus");
        Self {
            child,
            port,
            _directory: directory,
        }
    }

    /// The result of a query; `Err`: its error. None: it does not answer.
    async fn query(&self, query: &str) -> Option<Result<Vec<Value>, String>> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = get(self.port, &format!("/api/v1/query?query={escaped}")).await?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        Some(match answer["data"]["result"].as_array() {
            Some(result) => Ok(result.clone()),
            None => Err(answer["error"].to_string()),
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_query_asks_for_what_a_proxy_has() {
    let (_proxy, http) = served().await;
    let series = series(&get(http, "/metrics").await.expect("metrics"));
    let mut wrong = Vec::new();
    for asked in rules().iter().chain(&dashboard()) {
        for mistake in mistakes(&asked.query, &shown(&asked.legend), &series) {
            wrong.push(format!("{}: {mistake}", asked.place));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rules().len() > 15 && dashboard().len() > 40);
}

#[test]
fn promtool_accepts_the_rules() {
    let check = |file: &std::path::Path| {
        let mut promtool = program("promtool");
        let output = promtool.args(["check", "rules"]).arg(file).output();
        output.expect("promtool")
    };
    let output = check(RULES.as_ref());
    assert!(output.status.success(), "{output:?}");
    // And refuses what is wrong.
    let directory = tempfile::tempdir().expect("a directory");
    let planted = directory.path().join("planted.yml");
    let rules = read(RULES).replace("pgtenant_server_up == 0", "pgtenant_server_up == ");
    std::fs::write(&planted, rules).expect("a file");
    assert!(!check(&planted).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_a_proxy_and_answers_each_query() {
    let (_proxy, http) = served().await;
    let prometheus = Prometheus::scraping(http);
    eventually("it has scraped four times", async || {
        let query = "count_over_time(pgtenant_uptime_seconds[1m]) >= 4";
        let result = prometheus.query(query).await;
        result.is_some_and(|result| result.is_ok_and(|result| !result.is_empty()))
    })
    .await;
    let mut wrong = Vec::new();
    let dashboard = dashboard();
    let asked = rules();
    let asked = asked.iter().map(|rule| (rule, false));
    for (asked, has_values) in asked.chain(dashboard.iter().map(|panel| (panel, true))) {
        let query = asked.query.replace("$tenant", ".*");
        match prometheus.query(&query).await.expect("an answer") {
            Ok(result) if has_values && result.is_empty() => {
                wrong.push(format!("{}: no result", asked.place));
            }
            Ok(_) => {}
            Err(error) => wrong.push(format!("{}: {error}", asked.place)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let planted = prometheus.query("rate(pgtenant_uptime_seconds)").await;
    assert!(planted.expect("an answer").is_err(), "an error is told");

    // No rule fails, and none is on fire where nothing is wrong.
    let rules = get(prometheus.port, "/api/v1/rules").await.expect("rules");
    let rules: Value = serde_json::from_str(&rules).expect("JSON");
    let groups = rules["data"]["groups"].as_array().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
    for rule in rules {
        assert_ne!(rule["health"], "err", "{rule}");
        assert_ne!(rule["state"], "firing", "{rule}");
    }
}

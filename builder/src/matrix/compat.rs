//! Which Spark runs with which Java, Scala and Python.
//!
//! The table is data; [`check`] is pure. There are two levels: what *cannot* run (the bytecode is newer than
//! the Java, the Python is older than `python_requires`, a Scala that was never built) is always refused;
//! what nobody vouches for (a Java that the documentation of that line does not name, a Python above its
//! newest classifier, a Spark line newer than this table) is refused unless the specification says
//! `allowUntested: true`.
//!
//! Sources: "docs/index.md" of each line, `python_requires` and classifiers of the `pyspark` packages, the
//! class-file versions of their JARs, and runs of `spark-submit` on several Javas.

use super::cell::Cell;
use crate::version::Version;

/// One line of Spark releases.
#[derive(Debug)]
pub struct Line {
    /// The line, such as `(3, 5)`.
    pub line: (u32, u32),
    /// Javas that the documentation of the line names.
    pub java: &'static [u32],
    /// The oldest Java whose class files the JARs are: older ones fail with `UnsupportedClassVersionError`.
    pub java_floor: u32,
    /// A Java known to fail, with the reason.
    pub java_breaks: Option<(u32, &'static str)>,
    /// Scala versions that were released.
    pub scala: &'static [&'static str],
    /// The Scala of the `pyspark` packages, which are built once per release.
    pub scala_default: &'static str,
    /// `python_requires`.
    pub python_floor: (u32, u32),
    /// The newest Python among the classifiers.
    pub python_tested: (u32, u32),
    /// A Python known to fail, with the reason.
    pub python_breaks: Option<((u32, u32), &'static str)>,
    /// Modules that the Java runtime must have; jlinked runtimes may lack them.
    pub java_modules: &'static [&'static str],
    /// How executors are started in Kubernetes.
    pub executor: Executor,
}

/// What the entry point must know about a line to start executors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Executor {
    /// The main class.
    pub backend: &'static str,
    /// Whether the class takes `--resourceProfileId` (3.1 and newer).
    pub resource_profile: bool,
    /// Whether it takes `--podName` (3.3 and newer, with the class of its own).
    pub pod_name: bool,
}

const COARSE: &str = "org.apache.spark.executor.CoarseGrainedExecutorBackend";
/// In the JARs from 3.3.0 on; 3.2.4 does not have it.
const KUBERNETES: &str = "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend";

const FIRST: Executor = Executor { backend: COARSE, resource_profile: false, pod_name: false };
const PROFILED: Executor = Executor { resource_profile: true, ..FIRST };
const CURRENT: Executor = Executor { backend: KUBERNETES, resource_profile: true, pod_name: true };

/// Spark 4's launcher passes `--add-modules=jdk.incubator.vector`: a Java without it does not start.
const VECTOR: &[&str] = &["jdk.incubator.vector"];

const CLOUDPICKLE: ((u32, u32), &str) = ((3, 8), "its cloudpickle does not work with Python 3.8 and newer");
const JAVA_25: (u32, &str) = (25, "it fails at start with a Py4JJavaError on Java 25 (measured with 3.5.9)");

/// Every line that is known, oldest first.
pub const LINES: &[Line] = &[
    Line {
        python_breaks: Some(CLOUDPICKLE),
        ..spark3((2, 4), &[8], &["2.11", "2.12"], "2.11", (2, 7), (3, 7), FIRST)
    },
    spark3((3, 0), &[8, 11], &["2.12"], "2.12", (2, 7), (3, 9), FIRST),
    spark3((3, 1), &[8, 11], &["2.12"], "2.12", (3, 6), (3, 9), PROFILED),
    spark3((3, 2), &[8, 11], &["2.12", "2.13"], "2.12", (3, 6), (3, 9), PROFILED),
    spark3((3, 3), &[8, 11, 17], &["2.12", "2.13"], "2.12", (3, 7), (3, 10), CURRENT),
    spark3((3, 4), &[8, 11, 17], &["2.12", "2.13"], "2.12", (3, 7), (3, 11), CURRENT),
    spark3((3, 5), &[8, 11, 17], &["2.12", "2.13"], "2.12", (3, 8), (3, 11), CURRENT),
    spark4((4, 0), &[17, 21], (3, 9), (3, 13)),
    spark4((4, 1), &[17, 21], (3, 10), (3, 14)),
    spark4((4, 2), &[17, 21, 25], (3, 10), (3, 14)),
    // Its documentation was not at hand: 17 was run, 21 and 25 are left as untested.
    spark4((4, 3), &[17], (3, 11), (3, 14)),
];

const fn spark3(
    line: (u32, u32),
    java: &'static [u32],
    scala: &'static [&'static str],
    scala_default: &'static str,
    python_floor: (u32, u32),
    python_tested: (u32, u32),
    executor: Executor,
) -> Line {
    Line {
        line,
        java,
        java_floor: 8,
        java_breaks: Some(JAVA_25),
        scala,
        scala_default,
        python_floor,
        python_tested,
        python_breaks: None,
        java_modules: &[],
        executor,
    }
}

const fn spark4(line: (u32, u32), java: &'static [u32], floor: (u32, u32), tested: (u32, u32)) -> Line {
    Line {
        line,
        java,
        java_floor: 17,
        java_breaks: None,
        scala: &["2.13"],
        scala_default: "2.13",
        python_floor: floor,
        python_tested: tested,
        python_breaks: None,
        java_modules: VECTOR,
        executor: CURRENT,
    }
}

/// What the table says about a cell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Reasons why it cannot run.
    pub impossible: Vec<String>,
    /// Reasons why nobody vouches for it.
    pub untested: Vec<String>,
}

/// The line of a Spark version; a newer one than the table knows is taken for the newest.
pub fn line(spark: &Version) -> &'static Line {
    let newest = &LINES[LINES.len() - 1];
    LINES.iter().find(|line| line.line == spark.line()).unwrap_or(if spark.line() < LINES[0].line {
        &LINES[0]
    } else {
        newest
    })
}

/// Judges one cell of a matrix. What a plain image may hold is not known here.
pub fn check(cell: &Cell) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(spark) = &cell.spark else { return verdict };
    let line = line(spark);
    if line.line != spark.line() {
        verdict.untested.push(format!(
            "Spark {spark} belongs to no line that this version of hearth knows ({} to {})",
            dotted(LINES[0].line),
            dotted(LINES[LINES.len() - 1].line),
        ));
    }
    if let Some(java) = &cell.java {
        check_java(spark, line, java.number(0), &mut verdict);
    }
    if let Some(scala) = &cell.scala {
        let known: Vec<&str> = line.scala.to_vec();
        if !known.contains(&scala.to_string().as_str()) {
            let text = format!("Spark {spark} exists for Scala {} only", known.join(" and "));
            verdict.impossible.push(text);
        }
    }
    if let Some(python) = &cell.python {
        check_python(spark, line, python, &mut verdict);
    }
    verdict
}

fn check_java(spark: &Version, line: &Line, java: u32, verdict: &mut Verdict) {
    if java < line.java_floor {
        verdict.impossible.push(format!(
            "Spark {spark} is compiled for Java {}: Java {java} cannot load its classes",
            line.java_floor
        ));
    } else if let Some((breaks, reason)) = line.java_breaks
        && java >= breaks
    {
        verdict.impossible.push(format!("Spark {spark} does not run on Java {java}: {reason}"));
    } else if !line.java.contains(&java) {
        let known: Vec<String> = line.java.iter().map(u32::to_string).collect();
        let text = format!("Spark {spark} is documented for Java {}, not {java}", known.join(", "));
        verdict.untested.push(text);
    }
}

fn check_python(spark: &Version, line: &Line, python: &Version, verdict: &mut Verdict) {
    if python.line() < line.python_floor {
        let floor = dotted(line.python_floor);
        verdict.impossible.push(format!("PySpark {spark} needs Python {floor} or newer, not {python}"));
    } else if let Some((breaks, reason)) = line.python_breaks
        && python.line() >= breaks
    {
        verdict.impossible.push(format!("PySpark {spark} does not run on Python {python}: {reason}"));
    } else if python.line() > line.python_tested {
        let tested = dotted(line.python_tested);
        verdict.untested.push(format!("PySpark {spark} was tested up to Python {tested}, not {python}"));
    }
}

fn dotted(line: (u32, u32)) -> String {
    format!("{}.{}", line.0, line.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(spark: &str, java: &str, scala: &str, python: &str) -> Cell {
        Cell { scala: scala.parse().ok(), ..crate::matrix::cell(spark, java, python) }
    }

    #[test]
    fn the_table_is_applied_at_its_edges() {
        // (spark, java, scala, python), what is impossible, what is untested.
        let cases = [
            (("3.5.9", "17", "", "3.11"), "", ""),
            (("3.5.9", "8", "2.12", "3.8"), "", ""),
            (("3.5.9", "17", "", "3.12"), "", "up to Python 3.11"),
            (("3.5.9", "21", "", "3.11"), "", "documented for Java 8, 11, 17, not 21"),
            (("3.5.9", "25", "", "3.11"), "does not run on Java 25", ""),
            (("3.5.9", "17", "2.11", "3.11"), "Scala 2.12 and 2.13 only", ""),
            (("3.4.4", "17", "", "3.6"), "needs Python 3.7", ""),
            (("4.0.5", "11", "", "3.11"), "compiled for Java 17", ""),
            (("4.1.4", "17", "2.12", "3.10"), "Scala 2.13 only", ""),
            (("4.1.4", "21", "2.13", "3.9"), "needs Python 3.10", ""),
            (("4.2.1", "25", "", "3.14"), "", ""),
            (("4.3.0", "21", "", "3.11"), "", "documented for Java 17, not 21"),
            (("2.4.8", "8", "2.11", "2.7"), "", ""),
            (("2.4.8", "11", "2.11", "3.8"), "cloudpickle", "documented for Java 8"),
            (("5.0.0", "17", "", "3.12"), "", "no line that this version of hearth knows (2.4 to 4.3)"),
            (("3.5.9", "17", "", ""), "", ""),
        ];
        for ((spark, java, scala, python), impossible, untested) in cases {
            let verdict = check(&cell(spark, java, scala, python));
            let holds = |list: &[String], expected: &str| {
                if expected.is_empty() { list.is_empty() } else { list.join("; ").contains(expected) }
            };
            let name = format!("{spark} {java} {scala} {python}: {verdict:?}");
            assert!(holds(&verdict.impossible, impossible), "{name}");
            assert!(holds(&verdict.untested, untested), "{name}");
        }
    }

    #[test]
    fn lines_are_in_order_and_consistent() {
        assert!(LINES.windows(2).all(|pair| pair[0].line < pair[1].line));
        for line in LINES {
            assert!(line.scala.contains(&line.scala_default), "{:?}", line.line);
            assert!(line.java.iter().all(|java| *java >= line.java_floor), "{:?}", line.line);
            assert!(line.python_floor <= line.python_tested, "{:?}", line.line);
        }
    }

    #[test]
    fn executors_are_started_as_their_line_expects() {
        let executor = |text: &str| line(&text.parse().unwrap()).executor;
        assert_eq!(executor("3.0.3"), FIRST);
        assert_eq!(executor("3.2.4"), PROFILED);
        assert_eq!(executor("3.3.0"), CURRENT);
        assert_eq!(executor("9.9"), CURRENT);
    }
}

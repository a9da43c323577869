"""The CloudFormation template: correct, closed, without secrets, in step with Compose.

Nothing is deployed here: cfn-lint knows the resources' schemas, not whether an account allows them.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode import cfn_yaml

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "deploy" / "aws.yaml"
PLACEHOLDER = re.compile(r"\$\{[A-Za-z:.]+\}")


def lint(template: Path) -> subprocess.CompletedProcess[str]:
    """cfn-lint with every check; any finding, the informational ones included, is a failure."""
    return subprocess.run(
        [
            Path(sys.executable).with_name("cfn-lint"),
            *("--include-checks", "I", "--non-zero-exit-code", "informational"),
            *("--template", template),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    found: dict[str, Any] = cfn_yaml.load(str(TEMPLATE))["Resources"]
    return found


@pytest.fixture(scope="module")
def first_boot(resources: dict[str, Any]) -> str:
    """The instance's start script with the stack's values filled in."""
    script = resources["Instance"]["Properties"]["UserData"]["Fn::Base64"]["Fn::Sub"]
    return PLACEHOLDER.sub("value", script)


def of_type(resources: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [row["Properties"] for row in resources.values() if row["Type"] == kind]


def test_template_has_nothing_that_cfn_lint_finds(tmp_path: Path) -> None:
    answer = lint(TEMPLATE)
    assert answer.returncode == 0, answer.stdout
    wrong = tmp_path / "aws.yaml"
    wrong.write_text(TEMPLATE.read_text().replace("Encrypted: true", "Encrypted: often"))
    assert lint(wrong).returncode != 0


def test_only_the_page_is_open_and_the_disk_is_encrypted(resources: dict[str, Any]) -> None:
    (door,) = of_type(resources, "AWS::EC2::SecurityGroup")
    assert [(r["FromPort"], r["ToPort"]) for r in door["SecurityGroupIngress"]] == [(443, 443)]
    (instance,) = of_type(resources, "AWS::EC2::Instance")
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert all(disk["Ebs"]["Encrypted"] for disk in instance["BlockDeviceMappings"])


def test_bucket_is_closed_but_to_the_page(resources: dict[str, Any]) -> None:
    (bucket,) = of_type(resources, "AWS::S3::Bucket")
    block = bucket["PublicAccessBlockConfiguration"]
    assert len(block) == 4
    assert all(block.values())
    (rule,) = bucket["CorsConfiguration"]["CorsRules"]
    assert rule["AllowedOrigins"] == [{"Fn::Sub": "https://${HostName}"}]
    assert set(rule["AllowedMethods"]) == {"GET", "HEAD"}


def test_role_may_use_this_bucket_and_these_secrets_only(resources: dict[str, Any]) -> None:
    (role,) = of_type(resources, "AWS::IAM::Role")
    statements = [row for p in role["Policies"] for row in p["PolicyDocument"]["Statement"]]
    actions = {action for row in statements for action in as_list(row["Action"])}
    assert actions == {
        *("s3:ListBucket", "s3:GetObject", "s3:PutObject"),
        "secretsmanager:GetSecretValue",
    }
    named = [str(target) for row in statements for target in as_list(row["Resource"])]
    own = ("Pictures", *(name for name in resources if "Secret" in resources[name]["Type"]))
    assert all(any(name in target for name in own) for target in named)
    assert "'*'" not in str([row["Resource"] for row in statements])


def test_secrets_are_generated_and_stand_nowhere(resources: dict[str, Any]) -> None:
    secrets = of_type(resources, "AWS::SecretsManager::Secret")
    assert len(secrets) == 4
    assert all("SecretString" not in secret for secret in secrets)
    assert re.findall(r"\b[0-9a-f]{20,}\b|AKIA\w+", TEMPLATE.read_text()) == []


def test_first_boot_gives_compose_every_secret_it_asks_for(first_boot: str) -> None:
    asked = re.findall(r"^([A-Z_]+)=$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    (written,) = re.findall(r"cat > \.env <<END\n(.*?)\nEND\n", first_boot, flags=re.DOTALL)
    given = dict(line.split("=", 1) for line in written.splitlines())
    assert set(given) == {*asked, "AWS_DEFAULT_REGION", "CELLAI_BUCKET_URL"}
    assert len(asked) == 5
    assert all(given.values())


def test_first_boot_is_a_script_that_bash_can_read(first_boot: str) -> None:
    answer = subprocess.run(
        ["/bin/bash", "-n"], input=first_boot, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    (program,) = re.findall(r"python3 -c '(.*?)'", first_boot, flags=re.DOTALL)
    compile(program, "secret", "exec")


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]

"""The certificate that https is served with."""

from __future__ import annotations

import click

from app.cli.console import as_json, iso, jobs, one_line_errors, print_json
from app.runtime import current_runtime
from app.services.operations.certificate import CertificateUnknown, served_certificate
from app.services.operations.failure import OperationFailed

_EXPIRING = 1


@jobs.command("certificate")
@as_json
@click.pass_context
@one_line_errors
def show_certificate(context: click.Context, *, as_json: bool) -> None:
    """Show the certificate that nginx serves; exit 1 when it has expired, or will within two weeks."""
    address = current_runtime().settings.tls_address
    if not address:
        raise OperationFailed("https is off: no certificate is mounted (TLS_DIR in env.example)")
    try:
        found = served_certificate(address)
    except CertificateUnknown as error:
        raise OperationFailed(str(error)) from error
    problem = found.problem()
    if as_json:
        print_json(
            {
                "subject": found.subject,
                "issuer": found.issuer,
                "names": list(found.names),
                "self_signed": found.is_self_signed,
                "not_before": iso(found.not_before),
                "not_after": iso(found.not_after),
                "days_left": found.time_left().days,
                "problem": problem,
            }
        )
    else:
        click.echo(f"subject:    {found.subject}")
        click.echo(f"issuer:     {'itself' if found.is_self_signed else found.issuer}")
        click.echo(f"names:      {', '.join(found.names) or '-'}")
        click.echo(f"valid from: {iso(found.not_before)}")
        click.echo(f"valid to:   {iso(found.not_after)}")
        if problem:
            click.echo(f"problem:    {problem}")
    if problem:
        context.exit(_EXPIRING)

from app.db.migrations.environment import run

run()

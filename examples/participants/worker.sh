#!/bin/sh
# examples/participants/worker.sh
# Fetches what sagas want of the service `payment`, for which no instance is registered. Needs curl and jq.
API=${SYROS_URL:-http://localhost:8080}/api/v1
JSON="Content-Type: application/json"

part() { printf '%s' "$1" | jq "$2" "$3"; }

carry_out() { # a task; with a database, the barrier goes first, in the same transaction
    case $(part "$1" -r .action) in
    charge) part "$1" -ce 'select(.input.amount <= 100) | {charged: .input.amount}' ;;
    refund) part "$1" -c '{refunded: .input.input.amount}' ;;
    *) false ;;
    esac
}

answer() { # a task, complete or fail, and what else is to be said
    lease=$(part "$1" -r .lease_token)
    curl -sf "$API/tasks/$(part "$1" -r .task_id)/$2" -H "$JSON" -d "{\"lease_token\": \"$lease\", $3}"
}

while true; do
    asked='{"worker_id": "shell", "max": 1, "wait_seconds": 20}'
    found=$(curl -sf "$API/workers/payment/poll" -H "$JSON" -d "$asked") || { sleep 1; continue; }
    task=$(part "$found" -c '.tasks[0] // empty')
    [ -z "$task" ] && continue
    if output=$(carry_out "$task"); then
        answer "$task" complete "\"output\": $output"
    else
        answer "$task" fail '"code": "card_declined"'
    fi
done

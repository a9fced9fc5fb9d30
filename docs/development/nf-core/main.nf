process CELLER_ANNOTATE {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "celler:0.1.0" // docker build -t celler:0.1.0 docs/development/nf-core

    input:
    tuple val(meta), path(query)
    path model // a folder of model.save(), or [] with --tissue in ext.args

    output:
    tuple val(meta), path("${prefix}.h5ad"), emit: h5ad
    tuple val(meta), path("${prefix}.json"), emit: summary
    path "versions.yml"                    , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def folder = model ?: ''
    prefix = task.ext.prefix ?: "${meta.id}.celler"
    """
    export NUMBA_CACHE_DIR=\$PWD/numba MPLCONFIGDIR=\$PWD/matplotlib OMP_NUM_THREADS=${task.cpus}

    celler annotate ${folder} ${query} ${args} --json --out ${prefix}.h5ad > ${prefix}.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        celler: \$(celler --version | sed 's/celler //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}.celler"
    """
    touch ${prefix}.h5ad ${prefix}.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        celler: 0.1.0
    END_VERSIONS
    """
}
